"""Which positions each forward pass holds, and which of them a scope means."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steerbench.models.language_model import Batch
from steerbench.steering.parts import Scope


class Positions:
    """Which positions of the current forward pass are real, prompt, response, or past the end of their row.

    A position is a column of the batch. The mask is the one that the batch began with: what arrives at the model later
    differs between versions of transformers, which drop a mask of ones, and between attention implementations. A row is
    finished once it holds one of `end_ids` behind its prompt; from there on nothing is edited. `cached` says whether
    passes continue the one before them, or begin again at column 0, as one of all columns so far and one more does.
    """

    def __init__(self, batch: Batch, end_ids: Sequence[int], *, cached: bool) -> None:
        device = batch.input_ids.device
        self.batch = batch
        self.low, self.high = min(batch.prompt_ends), max(batch.prompt_ends)
        self.rows = len(batch.prompt_ends)
        self.past = self.width = 0
        self.resting = False
        """Whether passes go by that are neither followed nor edited."""
        self.whole = False
        """Whether this pass is a decoding step of rows that all go on: then there is nothing to leave out."""
        self._cached = cached
        self._begun_with = batch.attention_mask.bool()
        self.ends = torch.tensor(batch.prompt_ends, device=device)[:, None]
        self._end_ids = torch.tensor(list(end_ids), device=device, dtype=torch.long)
        self._known_end_ids = frozenset(end_ids)
        self._going_on = [True] * self.rows
        self._masks: dict[Scope, Tensor] = {}

    def advance(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, past: int | None = None) -> None:
        """Take note of a forward pass over `input_ids`, (batch, width). Raises if another pass had to follow.

        `past` is how many columns the pass has in its cache, where that is known.
        """
        seen = self.past + self.width
        self.width = input_ids.shape[1]
        again = (
            1 < self.width == seen + 1
        )  # GPT-1 has no cache, and Phi-3 rebuilds its own where it goes on to long RoPE
        self.past = (seen if self._cached and not again else 0) if past is None else past
        stop = self.past + self.width
        if len(input_ids) != self.rows or (attention_mask is not None and attention_mask.shape[-1] != stop):
            raise RuntimeError(f"a steered pass over {tuple(input_ids.shape)} ids does not continue column {self.past}")
        if self.width == 1 and self.past >= self._begun_with.shape[1]:
            self._note_step(input_ids)
        else:
            self._note_ends(input_ids)

    def _note_step(self, input_ids: Tensor) -> None:
        """Note a decoding step, (batch, 1), on the host: it has just waited for these ids, to see if it may stop."""
        ids = input_ids[:, 0].tolist()
        self._going_on = [on and i not in self._known_end_ids for on, i in zip(self._going_on, ids, strict=True)]
        self.whole = all(self._going_on)
        self._masks = {}

    def _note_ends(self, input_ids: Tensor) -> None:
        """Find the positions of this pass before the first end token of their row's response, (batch, width)."""
        still = ~torch.isin(input_ids, self._end_ids)
        if self.past < self.high:  # an end token in the prompt closes an earlier turn
            still |= self._columns() < self.ends
        if self.width > 1:
            still = still.cumprod(1).bool()
        if self.past:
            still &= self._rows_going_on()
        self._going_on, self.whole = still[:, -1].tolist(), False
        self._masks = {"all": (still & self._real())[..., None]}

    def _rows_going_on(self) -> Tensor:
        return torch.tensor(self._going_on, device=self.ends.device)[:, None]

    def _real(self) -> Tensor:
        """Return the positions that are no padding, (batch, width)."""
        known = self._begun_with[:, self.past : self.past + self.width]
        return torch.nn.functional.pad(known, (0, self.width - known.shape[1]), value=True)

    def _columns(self) -> Tensor:
        return torch.arange(self.past, self.past + self.width, device=self.ends.device)

    def span(self, scope: Scope) -> tuple[int, int]:
        """Return first column and end of what the scope may touch in this pass, known without asking the device."""
        low = self.low - 1 if scope == "response" else 0
        high = self.high if scope == "prompt" else self.past + self.width
        return max(low - self.past, 0), min(max(high - self.past, 0), self.width)

    def mask(self, scope: Scope) -> Tensor:
        """Return the positions of the scope in this pass, (batch, width, 1): real, in scope, not past the end."""
        if not self._masks:
            self._masks["all"] = self._rows_going_on()[..., None]
        if scope not in self._masks:
            columns = self._columns()
            inside = columns < self.ends if scope == "prompt" else columns >= self.ends - 1
            self._masks[scope] = self._masks["all"] & inside[..., None]
        return self._masks[scope]
