"""Install edits in a model and remove them again; know which positions each forward pass holds.

Nothing here is guessed from the layers' arguments, which differ between families and versions of transformers: one hook
on the model itself reads `input_ids` and `attention_mask`, and every edit asks `Positions`.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerbench.contest import decided
from steerbench.edits import Add
from steerbench.errors import SteerbenchError
from steerbench.lm import Batch
from steerbench.sites import Anatomy, Place, Site
from steerbench.steering import Edit, PerPosition, PlacedEdit, Scope
from steerbench.watching import hook


class Positions:
    """Which positions of the current forward pass are real, prompt, response, or past the end of their row.

    A position is a column of the batch. The mask is the one that the batch began with: what arrives at the model later
    differs between versions of transformers, which drop a mask of ones, and between attention implementations. A row is
    finished once it holds one of `end_ids` behind its prompt; from there on nothing is edited. `cached` says whether
    each pass continues the one before it, or begins again at column 0.
    """

    def __init__(self, batch: Batch, end_ids: Sequence[int], *, cached: bool) -> None:
        device = batch.input_ids.device
        self.batch = batch
        self.low, self.high = min(batch.prompt_ends), max(batch.prompt_ends)
        self.rows = len(batch.prompt_ends)
        self.past = self.width = 0
        self.whole = False
        """Whether this pass is a decoding step of rows that all go on: then there is nothing to leave out."""
        self._cached = cached
        self._begun_with = batch.attention_mask.bool()
        self.ends = torch.tensor(batch.prompt_ends, device=device)[:, None]
        self._end_ids = torch.tensor(list(end_ids), device=device, dtype=torch.long)
        self._known_end_ids = frozenset(end_ids)
        self._going_on = [True] * self.rows
        self._masks: dict[Scope, Tensor] = {}

    def advance(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        """Take note of a forward pass over `input_ids`, (batch, width). Raises if another pass had to follow."""
        seen = self.past + self.width
        if seen and 1 < input_ids.shape[1] == seen + 1:
            self._cached = False  # a model without a cache, such as GPT-1: it begins again each time
        self.past = seen if self._cached else 0
        self.width = input_ids.shape[1]
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
            self._masks[scope] = self._masks["all"] & self._in_scope(scope)[..., None]
        return self._masks[scope]

    def _in_scope(self, scope: Scope) -> Tensor:
        return self._columns() < self.ends if scope == "prompt" else self._columns() >= self.ends - 1


Observer = Callable[[Site, Tensor, Tensor], None]
"""Sees a site and its activations before and after its edits, (rows, columns, width) each."""


class _Editor:
    """Applies the edits of one place, in float32, and adds the result to the activation once."""

    def __init__(
        self,
        edits: Sequence[PlacedEdit],
        positions: Positions,
        device: torch.device,
        observe: Observer | None = None,
    ) -> None:
        self._edits = [(copy.deepcopy(p.edit).to(device).eval(), p.scope) for p in edits]
        self._states: list[Any] = []
        self._positions = positions
        self._site = edits[0].site
        self._observe = observe
        self._constant = None if observe else self._sum()

    def _sum(self) -> Tensor | None:
        """Return what a decoding step adds, (width,), if it is the same for every state."""
        shifts = [e.strength * e.vector for e, scope in self._edits if scope != "prompt" and type(e) is Add]
        others = [e for e, scope in self._edits if scope != "prompt" and type(e) is not Add]
        return torch.stack(shifts).sum(0) if shifts and not others else None

    def __call__(self, activation: Tensor) -> Tensor:
        constant = self._constant
        if (
            constant is not None
            and self._positions.whole
            and activation.dtype is constant.dtype
            and activation.is_contiguous()
        ):
            return activation + constant
        h = self._by_rows(activation)
        edited = self._step(h) if self._positions.whole and self._states else self._pass(h)
        if self._observe:
            self._observe(self._site, h, edited)
        return _laid_out_like(activation, edited if edited.shape == h.shape else edited.expand_as(h))

    def _by_rows(self, activation: Tensor) -> Tensor:
        """Return the activation as (rows, columns, width); some modules get all positions in one row."""
        rows = self._positions.rows
        whole = activation.ndim == 3 and len(activation) == rows
        return activation if whole else activation.reshape(rows, -1, activation.shape[-1])

    def _step(self, h: Tensor) -> Tensor:
        """Edit a decoding step of rows that all go on: nothing is masked, and only the scope of the prompt is past."""
        past = self._positions.past
        for (edit, scope), state in zip(self._edits, self._states, strict=True):
            if scope != "prompt":
                h = edit(_wide(h), state.columns(past, past + 1) if isinstance(state, PerPosition) else state)
        return h

    def _pass(self, h: Tensor) -> Tensor:
        """Edit what a pass holds of each edit's scope. The first pass starts the edits."""
        skipped = self._positions.width - h.shape[1]  # at the LM head often only the last positions arrive
        for i, (edit, scope) in enumerate(self._edits):
            if len(self._states) == i:
                self._states.append(self._start(edit, h, skipped))
            h = self._apply(edit, scope, self._states[i], h, skipped)
        return h

    def _start(self, edit: Edit, h: Tensor, skipped: int) -> Any:
        if type(edit).start is Edit.start:
            return None
        if self._site.name == "final":  # of the prompt, only the last position is sure to arrive here
            last = self._positions.ends - 1 - skipped
            prompt = h.take_along_dim(last[..., None].to(h.device), dim=1)
            mask = torch.ones_like(prompt[..., 0], dtype=torch.bool)
        else:
            prompt = h[:, : self._positions.high]
            mask = self._positions.mask("prompt")[:, : self._positions.high, 0].to(h.device)
        state = edit.start(_wide(prompt), mask)
        return self._in_columns(edit, state, mask) if isinstance(state, PerPosition) else state

    def _in_columns(self, edit: Edit, state: PerPosition, mask: Tensor) -> PerPosition:
        """Return the values by column of the batch, zeros for padding; `mask` is what the edit was started with."""
        values = state.values
        if values.shape[:2] != mask.shape:
            raise SteerbenchError(
                f"{type(edit).__name__} keeps values for {tuple(values.shape[:2])} positions, not for the "
                f"{tuple(mask.shape)} of the prompts; return one vector for each position that `start` is given."
            )
        values = values.masked_fill(~mask[..., None], 0)
        if self._site.name != "final":
            return PerPosition(values)
        last = (self._positions.ends - 1)[..., None].to(values.device).expand_as(values)
        everywhere = values.new_zeros(len(values), self._positions.high, values.shape[2])
        return PerPosition(everywhere.scatter(1, last, values))

    def _apply(self, edit: Edit, scope: Scope, state: Any, h: Tensor, skipped: int) -> Tensor:
        """Edit the columns that the scope may touch, and of these keep what the mask says."""
        positions = self._positions
        start, stop = (max(column - skipped, 0) for column in positions.span(scope))
        if start >= stop:
            return h
        wide = _wide(h)
        if isinstance(state, PerPosition):
            first = positions.past + skipped
            state = state.columns(first + start, first + stop)
        mask = positions.mask(scope).to(h.device)
        if stop - start == mask.shape[1]:
            return torch.where(mask, edit(wide, state), wide)
        part = wide[:, start:stop]
        new = torch.where(mask[:, skipped:][:, start:stop], edit(part, state), part)
        return torch.cat([wide[:, :start], new, wide[:, stop:]], dim=1)


def _laid_out_like(activation: Tensor, edited: Tensor) -> Tensor:
    """Return `edited` with shape, type and strides of the activation: another layout can change a matmul's last bit."""
    if edited.dtype != activation.dtype or edited.shape != activation.shape:
        edited = edited.to(activation.dtype).reshape(activation.shape)
    if edited.stride() == activation.stride():
        return edited
    return torch.empty_strided(
        activation.shape, activation.stride(), dtype=activation.dtype, device=activation.device
    ).copy_(edited)


def _wide(h: Tensor) -> Tensor:
    """Return the activation in float32 at least."""
    return h if h.dtype == torch.float32 else h.to(torch.promote_types(h.dtype, torch.float32))


@contextmanager
def steered(
    model: PreTrainedModel,
    anatomy: Anatomy,
    edits: Sequence[PlacedEdit],
    positions: Positions,
    observe: Observer | None = None,
) -> Iterator[None]:
    """Edit the model's activations inside the context. All sites are resolved first; hooks are always removed.

    If edits compete, the model runs once over the prompts before anything is installed.
    """
    if not edits:
        yield
        return
    places = [anatomy.place(p.site) for p in edits]
    placed = zip(places, decided(model, edits, places, positions.batch), strict=True)
    by_place = groupby(sorted(placed, key=lambda pair: _order(pair[0])), key=lambda pair: pair[0])
    with ExitStack() as stack:
        stack.callback(_follow(model, positions).remove)
        for place, group in by_place:
            editor = _Editor([p for _, p in group], positions, _device(place.module), observe)
            stack.callback(hook(place, editor).remove)
        yield


def _follow(model: PreTrainedModel, positions: Positions) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        if input_ids is None:
            raise SteerbenchError("a steered forward pass needs input_ids.")
        positions.advance(input_ids, kwargs.get("attention_mask"))

    return model.register_forward_pre_hook(note, with_kwargs=True)


def _order(place: Place) -> tuple[int, str]:
    return id(place.module), place.side


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
