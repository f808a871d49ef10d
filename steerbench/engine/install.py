"""Install edits in a model and remove them again; know which positions each forward pass holds.

Nothing here is guessed from the layers' arguments, which differ between families and versions of transformers: one hook
on the model itself reads `input_ids` and `attention_mask`, and every edit asks `Positions`.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import PreTrainedModel

from steerbench.engine.hooks import hook
from steerbench.engine.positions import Positions, Rearrangement, Replacement
from steerbench.engine.ranked import Idle, InRows, decided
from steerbench.errors import SteerbenchError
from steerbench.models.sites import Anatomy, Place, Site
from steerbench.steering.additions import Add
from steerbench.steering.parts import Edit, PerPosition, PlacedEdit, Scope

Observer = Callable[[Site, Tensor, Tensor], None]
"""Sees a site and its activations before and after its edits, (rows, columns, width) each."""


class Editor:
    """Applies the edits of one place, in float32, and adds the result to the activation once."""

    def __init__(
        self,
        edits: Sequence[PlacedEdit],
        positions: Positions,
        place: Place,
        observe: Observer | None = None,
        *,
        learning: bool = False,
    ) -> None:
        self._device = next(place.module.parameters()).device
        self._edits = [(p.edit if learning else copy.deepcopy(p.edit).to(self._device).eval(), p.scope) for p in edits]
        self._states: list[Any] = []
        self._positions = positions
        self._site = edits[0].site
        self._observe = observe
        self._constant = None if observe or learning else self._sum()
        """What a decoding step adds, (width,) or (rows, 1, width)."""
        # which torch would spread over the whole state
        self._narrow = any(isinstance(p.edit, Add) and len(p.edit.vector) == 1 for p in edits)
        positions.follow(self)

    def rearrange(self, change: Rearrangement) -> None:
        """Let the state of each edit, and where its gate is open, follow its rows."""
        gated = [edit for edit, _ in self._edits if isinstance(edit, InRows)]
        for edit in gated:
            edit.follow(change.rows)
        if gated and self._constant is not None:
            self._constant = self._sum()
        self._states = [
            _follow_rows(edit, state, change) for (edit, _), state in zip(self._edits, self._states, strict=False)
        ]

    def replace(self, change: Replacement, other: "Editor") -> None:
        """Take over the states, and where gates are open, of rows that another editor with the same edits has begun."""
        pairs = list(zip(self._edits, other._edits, strict=True))
        gates = ((mine, theirs) for (mine, _), (theirs, _) in pairs)
        gated = [(a, b) for a, b in gates if isinstance(a, InRows) and isinstance(b, InRows)]
        for mine, theirs in gated:
            mine.rows = change.of_rows(mine.rows, theirs.rows)
        if gated and self._constant is not None:
            self._constant = self._sum()
        states = zip(self._states, other._states, strict=True)
        self._states = [_replace_rows(own, new, change, self._positions.rows) for own, new in states]

    def can_follow(self) -> bool:
        """Tell whether the states of all edits say which row each of their values is of."""
        return all(_says_rows(state, self._positions.rows) for state in self._states)

    def can_replace(self, other: "Editor") -> bool:
        """Tell whether another editor's states can be joined with these, row by row."""
        alike = len(self._states) == len(other._states) and self.can_follow() and other.can_follow()
        rows = self._positions.rows, other._positions.rows
        return alike and all(_fit(own, new, *rows) for own, new in zip(self._states, other._states, strict=True))

    def _sum(self) -> Tensor | None:
        """Return what a decoding step adds, (width,), or (rows, 1, width) behind gates, if no state changes it."""
        constants = [edit.constant() for edit, scope in self._edits if scope != "prompt"]
        known = [constant for constant in constants if constant is not None]
        widths = {constant.shape[-1:] for constant in known}
        if len(known) < len(constants) or len(widths) != 1 or not all(widths):
            return None
        shape = max((constant.shape for constant in known), key=len)
        return torch.stack([constant.expand(shape) for constant in known]).sum(0)

    def __call__(self, activation: Tensor) -> Tensor | None:
        """Return the edited activation of a pass, of the same shape, type and layout; None where edits rest."""
        if self._positions.resting:
            return None
        if activation.device != self._device:
            self._follow_to(activation.device)
        constant = self._constant
        if (
            constant is not None
            and self._positions.whole
            and constant.shape[-1] == activation.shape[-1]
            and (constant.ndim == 1 or (activation.ndim == 3 and len(activation) == len(constant)))
            and activation.dtype is constant.dtype
            and activation.is_contiguous()
        ):
            return activation + constant
        h = self._by_rows(activation)
        try:
            edited = self._step(h) if self._positions.whole and self._states else self._pass(h)
            if self._narrow and h.shape[-1] > 1:
                raise RuntimeError("one value for all of a state")
        except RuntimeError as error:
            self._tell_width(h.shape[-1], error)
            raise
        if self._observe:
            self._observe(self._site, h, edited)
        return _laid_out_like(activation, edited if edited.shape == h.shape else edited.expand_as(h))

    def _follow_to(self, device: torch.device) -> None:
        """Move to the device of the states: of a model on several, what enters a part comes from that of the last."""
        self._device = device
        for edit, _ in self._edits:
            edit.to(device)
        if self._constant is not None:
            self._constant = self._constant.to(device)

    def _tell_width(self, width: int, error: RuntimeError) -> None:
        """Raise SteerbenchError if an edit failed that has tensors, none of them as wide as the states."""
        for edit, _ in self._edits:
            sizes = {size for tensor in (*edit.parameters(), *edit.buffers()) for size in tensor.shape}
            if sizes and width not in sizes:
                raise SteerbenchError(
                    f"{type(edit).__name__} does not fit {self._site}, whose states are {width} wide: it was made for "
                    f"another model or site; fit it again on this one."
                ) from error

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


def _follow_rows(edit: Edit, state: Any, change: Rearrangement) -> Any:
    """Return the state of other rows. Raises SteerbenchError where it does not say which row each of its values is of.

    A tensor has the rows first, or one value for all of them.
    """
    if isinstance(state, PerPosition):
        return PerPosition(change.of_columns(state.values))
    leaves, form = tree_flatten(state)
    if not _says_rows(state, change.old_rows):
        raise SteerbenchError(
            f"{type(edit).__name__} keeps a state that cannot follow its rows; let `start` return tensors that have "
            f"the rows first, and nothing else."
        )
    rows = change.rows
    moved = [
        leaf if leaf is None or leaf.ndim == 0 or len(leaf) < change.old_rows else leaf[rows.to(leaf.device)]
        for leaf in leaves
    ]
    return tree_unflatten(moved, form)


def _says_rows(state: Any, rows: int) -> bool:
    """Tell whether a state has the rows first in each of its tensors, or one value for all, and nothing else."""
    return isinstance(state, PerPosition) or all(
        leaf is None or (isinstance(leaf, Tensor) and (leaf.ndim == 0 or len(leaf) in {1, rows}))
        for leaf in tree_flatten(state)[0]
    )


def _fit(own: Any, new: Any, own_rows: int, new_rows: int) -> bool:
    """Tell whether two states are alike but for their rows: what all rows share must be the same."""
    if isinstance(own, PerPosition) or isinstance(new, PerPosition):
        return type(own) is type(new) and own.values.shape[2:] == new.values.shape[2:]
    (leaves, form), (others, other_form) = tree_flatten(own), tree_flatten(new)
    if form != other_form:
        return False
    return all(_fit_leaf(a, b, own_rows, new_rows) for a, b in zip(leaves, others, strict=True))


def _fit_leaf(own: Tensor | None, new: Tensor | None, own_rows: int, new_rows: int) -> bool:
    if own is None or new is None:
        return own is new
    if own.shape[1:] != new.shape[1:] or own.dtype != new.dtype or own.ndim != new.ndim:
        return False
    by_row = own.ndim > 0 and len(own) == own_rows and len(new) == new_rows
    return by_row or (own.shape == new.shape and torch.equal(own, new))


def _replace_rows(own: Any, new: Any, change: Replacement, rows: int) -> Any:
    """Return the state of so many rows with rows of another one, which fits."""
    if isinstance(own, PerPosition):
        return PerPosition(change.of_columns(own.values, new.values))
    leaves, form = tree_flatten(own)
    pairs = zip(leaves, tree_flatten(new)[0], strict=True)
    return tree_unflatten([a if _is_shared(a, rows) else change.of_rows(a, b) for a, b in pairs], form)


def _is_shared(leaf: Tensor | None, rows: int) -> bool:
    return leaf is None or leaf.ndim == 0 or len(leaf) != rows


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
    *,
    learning: bool = False,
    changing: bool = False,
) -> Iterator[None]:
    """Edit the model's activations inside the context. All sites are resolved first; hooks are always removed.

    If edits compete or have gates, the model runs once over the prompts before anything is installed. Copies of the
    edits act, unless they are `learning`: then they act themselves, and gradients reach them. Where rows are `changing`
    for those of other prompts, each edit stands where it is, whether a gate opens for these or not.
    """
    if not edits:
        yield
        return
    places = [anatomy.place(p.site) for p in edits]
    by_place: dict[Place, list[PlacedEdit]] = {}
    for place, placed in zip(
        places, decided(model, anatomy, edits, places, positions.batch, by_row=changing), strict=True
    ):
        if observe or learning or not isinstance(placed.edit, Idle):
            by_place.setdefault(place, []).append(placed)
    if not by_place:
        yield
        return
    with ExitStack() as stack:
        stack.callback(_follow(model, positions).remove)
        for place, group in by_place.items():
            editor = Editor(group, positions, place, observe, learning=learning)
            stack.callback(hook(place, editor).remove)
        yield


def _follow(model: PreTrainedModel, positions: Positions) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if positions.resting:
            return
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        if input_ids is None:
            raise SteerbenchError("a steered forward pass needs input_ids.")
        positions.advance(input_ids, kwargs.get("attention_mask"))

    return model.register_forward_pre_hook(note, with_kwargs=True)
