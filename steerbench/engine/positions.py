"""Which positions each forward pass holds, and which of them a scope means."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from steerbench.models.language_model import Batch
from steerbench.steering.parts import Scope


class Rearrangement(NamedTuple):
    """Rows made of other rows: of row `rows[i]` the columns in front of some column, moved so that all end alike."""

    rows: Tensor
    """(new rows,): of which row each is a copy."""
    shifts: Tensor
    """(new rows,): by how many columns it moves to the right."""
    width: int
    """Columns that are kept."""
    plain: bool
    """Whether no row moves."""
    old_rows: int
    """How many rows there were."""

    @classmethod
    def of(cls, rows: Sequence[int], stops: Sequence[int], mask: Tensor, *, trim: bool) -> Self:
        """Keep what stands in front of the column `stops`; trimmed, without more padding than the longest row needs.

        `rows` and `stops` are as long as there are new rows; `mask`, (old rows, columns), is 0 in the padding of each
        row, which is at its left.
        """
        left = (mask.shape[1] - mask.sum(1)).tolist()
        padding = [left[row] if trim else 0 for row in rows]
        width = max(stop - left for stop, left in zip(stops, padding, strict=True))
        shifts = [width - stop for stop in stops]
        of_rows, moved = (torch.tensor(list(values), device=mask.device) for values in (rows, shifts))
        return cls(of_rows, moved, width, not any(shifts), len(mask))

    def of_columns(self, values: Tensor, fill: Any = 0) -> Tensor:
        """Return values by column, (rows, columns) or more dimensions, for the new rows; `fill` where none are."""
        columns, rows = self._columns(values), self.rows.to(values.device)
        inside = (columns >= 0) & (columns < values.shape[1])
        moved = values[rows[:, None], columns.clamp(0, values.shape[1] - 1)]
        return moved.masked_fill(~inside.reshape(*inside.shape, *[1] * (values.ndim - 2)), fill)

    def of_cache(self, values: Tensor) -> Tensor:
        """Return a cache's keys or values, (rows, heads, columns, width), for the new rows; anything for padding.

        Of a model on several devices, those of each layer are on its own.
        """
        rows = self.rows.to(values.device)
        if self.plain:
            return values.index_select(0, rows)[:, :, : self.width]
        columns = self._columns(values).clamp(0, values.shape[2] - 1)
        return values[rows[:, None], :, columns].transpose(1, 2).contiguous()

    def _columns(self, values: Tensor) -> Tensor:
        return torch.arange(self.width, device=values.device) - self.shifts[:, None].to(values.device)


class Replacement(NamedTuple):
    """Rows of a batch that make room for rows of another one; all end in the last column, behind any padding."""

    places: Tensor
    """(new rows,): where each goes."""
    rows: Tensor
    """(new rows,): of which row of the other batch each is a copy."""
    width: int
    """Columns that are kept: as many as the longest row needs."""
    old_width: int
    """Columns of the batch before."""
    other_width: int
    """Columns of the other batch."""

    def of_rows(self, own: Tensor, others: Tensor) -> Tensor:
        """Return values by row, (rows, ...), with those of the new rows at their places."""
        return own.index_copy(0, self.places.to(own.device), others[self.rows.to(others.device)].to(own.device))

    def of_columns(self, own: Tensor, others: Tensor) -> Tensor:
        """Return values by column, (rows, columns, ...), with those of the new rows; zeros where none are."""
        kept = _last(_filled_up(own, self.old_width), 1, self.width)
        return self.of_rows(kept, _last(_filled_up(others, self.other_width), 1, self.width))

    def of_cache(self, own: Tensor, others: Tensor) -> Tensor:
        """Write a cache's keys or values, (rows, heads, columns, width), of the new rows over those of the old ones.

        Padding gets zeros: what is masked must be a number still.
        """
        kept = _last(own, 2, self.width)
        kept[self.places.to(kept.device)] = _last(others[self.rows.to(others.device)], 2, self.width)
        return kept


def _last(values: Tensor, dim: int, width: int) -> Tensor:
    """Return the last columns; where there are fewer, with zeros in front of them."""
    missing = width - values.shape[dim]
    if missing <= 0:
        return values.narrow(dim, -missing, width)
    padding = values.new_zeros(*values.shape[:dim], missing, *values.shape[dim + 1 :])
    return torch.cat([padding, values], dim=dim)


def _filled_up(values: Tensor, width: int) -> Tensor:
    """Return values by column, of the first columns at least, with zeros for the others of a batch."""
    padding = values.new_zeros(len(values), width - values.shape[1], *values.shape[2:])
    return torch.cat([values, padding], dim=1) if padding.shape[1] else values


class Follower(Protocol):
    """Keeps something of each row."""

    def rearrange(self, change: Rearrangement) -> None:
        """Go on with other rows."""

    def replace(self, change: Replacement, other: Any) -> None:
        """Take over rows of another batch, of which `other` keeps the same."""

    def can_follow(self) -> bool:
        """Tell whether it can do the former."""

    def can_replace(self, other: Any) -> bool:
        """Tell whether it can do the latter."""


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
        self._branching = False
        self.cached = cached
        self._begun_with = batch.attention_mask.bool()
        self.ends = torch.tensor(batch.prompt_ends, device=device)[:, None]
        self._end_ids = torch.tensor(list(end_ids), device=device, dtype=torch.long)
        self._known_end_ids = frozenset(end_ids)
        self._going_on = [True] * self.rows
        self._masks: dict[Scope, Tensor] = {}
        self._followers: list[Follower] = []

    def follow(self, follower: Follower) -> None:
        """Have `follower` told whenever other rows take the places of those there are."""
        self._followers.append(follower)

    @property
    def movable(self) -> bool:
        """Whether rows can be rearranged: whether all that keep something of them can follow."""
        return all(follower.can_follow() for follower in self._followers)

    def replaceable(self, others: "Positions") -> bool:
        """Tell whether rows can make room for those of another batch, edited alike."""
        pairs = zip(self._followers, others._followers, strict=False)
        return len(self._followers) == len(others._followers) and all(mine.can_replace(other) for mine, other in pairs)

    def rearrange(self, change: Rearrangement, mask: Tensor) -> None:
        """Go on with other rows, all of which go on: copies of those there are, moved and cut.

        `mask` is that of the new rows. The next pass continues them, or begins again at column 0 where nothing is
        cached.
        """
        self._go_on(self.ends[:, 0][change.rows] + change.shifts, mask)
        for follower in self._followers:
            follower.rearrange(change)

    def replace(self, change: Replacement, others: "Positions", mask: Tensor) -> None:
        """Go on with rows of another batch at the places of some of these; `mask` is that of all rows then.

        All rows go on. The next pass is as behind `rearrange`.
        """
        own, new = (p.ends + change.width - w for p, w in ((self, change.old_width), (others, change.other_width)))
        self._go_on(change.of_rows(own, new)[:, 0], mask)
        for follower, other in zip(self._followers, others._followers, strict=True):
            follower.replace(change, other)

    def _go_on(self, ends: Tensor, mask: Tensor) -> None:
        """Go on behind all columns of a mask, in rows whose prompts end in front of `ends`, (rows,)."""
        self.ends = ends[:, None]
        self.rows, self._begun_with = len(mask), mask.bool()
        self.low, self.high = int(ends.min()), int(ends.max())
        self.past, self.width = 0, mask.shape[1]
        self._going_on, self.whole, self._masks = [True] * self.rows, False, {}

    def begin_behind(self, columns: int) -> None:
        """Let the first pass begin behind some columns, which nothing edits: a cache holds them already."""
        self.past, self.width = columns, 0

    def advance(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, past: int | None = None) -> None:
        """Take note of a forward pass over `input_ids`, (batch, width). Raises if another pass had to follow.

        `past` is how many columns the pass has in its cache, where that is known.
        """
        seen = self.past + self.width
        if self._branching:
            self._note_branches(input_ids, seen)
            return
        continuing, self.width = self.width > 0, input_ids.shape[1]
        again = (
            continuing and 1 < self.width == seen + 1
        )  # GPT-1 has no cache, and Phi-3 rebuilds its own where it goes on to long RoPE
        self.past = (seen if self.cached and not again else 0) if past is None else past
        stop = self.past + self.width
        if len(input_ids) != self.rows or (attention_mask is not None and attention_mask.shape[-1] != stop):
            raise RuntimeError(f"a steered pass over {tuple(input_ids.shape)} ids does not continue column {self.past}")
        if self.width == 1 and self.past >= self._begun_with.shape[1]:
            self._note_step(input_ids)
        else:
            self._note_ends(input_ids)

    @contextmanager
    def branching(self) -> Iterator[None]:
        """Inside, a pass holds candidates for the next token, blind to each other; what follows does not see them."""
        kept = (self.past, self.width, self.whole, self._masks)
        self._branching = True
        try:
            yield
        finally:
            self._branching = False
            self.past, self.width, self.whole, self._masks = kept

    def _note_branches(self, input_ids: Tensor, past: int) -> None:
        """Find the candidates to edit, (batch, width): no end tokens, and none of a row that has ended."""
        self.past, self.width, self.whole = past, input_ids.shape[1], False
        still = ~torch.isin(input_ids, self._end_ids) & self._rows_going_on()
        self._masks = {"all": still[..., None]}

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
