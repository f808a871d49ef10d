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

from steerbench.errors import SteerbenchError
from steerbench.lm import Batch
from steerbench.sites import Anatomy, Place, Site
from steerbench.steering import Edit, PlacedEdit, Scope


class Positions:
    """Which positions of the current forward pass are real, prompt, response, or past the end of their row.

    A position is a column of the batch. The mask is the one that the batch began with: what arrives at the model later
    differs between versions of transformers, which drop a mask of ones, and between attention implementations. A row is
    finished once it holds one of `end_ids` behind its prompt; from there on nothing is edited. `cached` says whether
    each pass continues the one before it, or begins again at column 0.
    """

    def __init__(self, batch: Batch, end_ids: Sequence[int], *, cached: bool) -> None:
        device = batch.input_ids.device
        self.low, self.high = min(batch.prompt_ends), max(batch.prompt_ends)
        self.rows = len(batch.prompt_ends)
        self.past = self.width = 0
        self._cached = cached
        self._begun_with = batch.attention_mask.bool()
        self.ends = torch.tensor(batch.prompt_ends, device=device)[:, None]
        self._end_ids = torch.tensor(list(end_ids), device=device, dtype=torch.long)
        self._going_on = torch.ones_like(self.ends, dtype=torch.bool)
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
        self._note_ends(input_ids)
        self._masks = {"all": self._inside()[..., None]}

    def _note_ends(self, input_ids: Tensor) -> None:
        """Find the positions of this pass before the first end token of their row's response, (batch, width)."""
        still = ~torch.isin(input_ids, self._end_ids)
        if self.past < self.high:  # an end token in the prompt closes an earlier turn
            still |= self._columns() < self.ends
        if self.width > 1:
            still = still.cumprod(1).bool()
        if self.past:
            still &= self._going_on
        self._still, self._going_on = still, still[:, -1:]

    def _inside(self) -> Tensor:
        """Return the positions that are neither padding nor past the end of their row, (batch, width)."""
        known = self._begun_with[:, self.past : self.past + self.width]
        if not known.shape[1]:
            return self._still
        return self._still & torch.nn.functional.pad(known, (0, self.width - known.shape[1]), value=True)

    def _columns(self) -> Tensor:
        return torch.arange(self.past, self.past + self.width, device=self.ends.device)

    def span(self, scope: Scope) -> tuple[int, int]:
        """Return first column and end of what the scope may touch in this pass, known without asking the device."""
        low = self.low - 1 if scope == "response" else 0
        high = self.high if scope == "prompt" else self.past + self.width
        return max(low - self.past, 0), min(max(high - self.past, 0), self.width)

    def mask(self, scope: Scope) -> Tensor:
        """Return the positions of the scope in this pass, (batch, width, 1): real, in scope, not past the end."""
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

    def __call__(self, activation: Tensor) -> Tensor:
        positions = self._positions
        h = activation.reshape(positions.rows, -1, activation.shape[-1])
        skipped = positions.width - h.shape[1]  # at the LM head often only the last positions arrive
        edited = h
        for i, (edit, scope) in enumerate(self._edits):
            if len(self._states) == i:  # the first pass
                self._states.append(self._start(edit, edited, skipped))
            edited = self._apply(edit, scope, self._states[i], edited, skipped)
        if self._observe:
            self._observe(self._site, h, edited)
        return _laid_out_like(activation, edited)

    def _start(self, edit: Edit, h: Tensor, skipped: int) -> Any:
        if type(edit).start is Edit.start:
            return None
        if self._site.name == "final":  # of the prompt, only the last position is sure to arrive here
            last = self._positions.ends - 1 - skipped
            prompt = h.take_along_dim(last[..., None].to(h.device), dim=1)
            return edit.start(prompt.to(_wide(h)), torch.ones_like(prompt[..., 0], dtype=torch.bool))
        stop = self._positions.high
        mask = self._positions.mask("prompt")[:, :stop, 0].to(h.device)
        return edit.start(h[:, :stop].to(_wide(h)), mask)

    def _apply(self, edit: Edit, scope: Scope, state: Any, h: Tensor, skipped: int) -> Tensor:
        """Edit the columns that the scope may touch, and of these keep what the mask says."""
        start, stop = (max(column - skipped, 0) for column in self._positions.span(scope))
        if start >= stop:
            return h
        mask, wide = self._positions.mask(scope).to(h.device), h.to(_wide(h))
        if stop - start == mask.shape[1]:  # a decoding step, mostly
            return torch.where(mask, edit(wide, state), wide)
        part = wide[:, start:stop]
        new = torch.where(mask[:, skipped:][:, start:stop], edit(part, state), part)
        return torch.cat([wide[:, :start], new, wide[:, stop:]], dim=1)


def _laid_out_like(activation: Tensor, edited: Tensor) -> Tensor:
    """Return `edited` with shape, type and strides of the activation: another layout can change a matmul's last bit."""
    edited = edited.to(activation.dtype).reshape(activation.shape)
    if edited.stride() == activation.stride():
        return edited
    return torch.empty_strided(
        activation.shape, activation.stride(), dtype=activation.dtype, device=activation.device
    ).copy_(edited)


def _wide(h: Tensor) -> torch.dtype:
    return torch.promote_types(h.dtype, torch.float32)


@contextmanager
def steered(
    model: PreTrainedModel,
    anatomy: Anatomy,
    edits: Sequence[PlacedEdit],
    positions: Positions,
    observe: Observer | None = None,
) -> Iterator[None]:
    """Edit the model's activations inside the context. All sites are resolved first; hooks are always removed."""
    if not edits:
        yield
        return
    places = [(anatomy.place(p.site), p) for p in edits]
    by_place = groupby(sorted(places, key=lambda pair: _order(pair[0])), key=lambda pair: pair[0])
    with ExitStack() as stack:
        stack.callback(_follow(model, positions).remove)
        for place, group in by_place:
            editor = _Editor([p for _, p in group], positions, _device(place.module), observe)
            stack.callback(_hook(place, editor).remove)
        yield


@contextmanager
def watched(place: Place, read: Callable[[Tensor], None]) -> Iterator[None]:
    """Hand each activation at a place to `read` inside the context; nothing is changed."""
    handle = _hook(place, read)
    try:
        yield
    finally:
        handle.remove()


def _follow(model: PreTrainedModel, positions: Positions) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        if input_ids is None:
            raise SteerbenchError("a steered forward pass needs input_ids.")
        positions.advance(input_ids, kwargs.get("attention_mask"))

    return model.register_forward_pre_hook(note, with_kwargs=True)


def _hook(place: Place, function: Callable[[Tensor], Tensor | None] | Callable[[Tensor], None]) -> Any:
    """Register a function of the activation at a place; what it returns, unless None, replaces the activation."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = function(args[0])
        return None if new is None else (new, *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return function(output)
        new = function(output[0])
        return None if new is None else (new, *output[1:])

    if place.side == "input":
        return place.module.register_forward_pre_hook(before)
    return place.module.register_forward_hook(after)


def _order(place: Place) -> tuple[int, str]:
    return id(place.module), place.side


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
