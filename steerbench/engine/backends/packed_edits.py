"""The edits of one place, applied to packed activations: in float32, and added to the activation once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steerbench.engine.backends.packed_step import PackedStep
from steerbench.engine.backends.shipment import Shipped


class PackedEdits:
    """Edits that act one after another on the tokens of a step."""

    def __init__(self, edits: Sequence[Shipped], device: torch.device) -> None:
        self._edits = [_On(group[0], device) if len(group) == 1 else _Table(group, device) for group in _tables(edits)]

    def __call__(self, activation: Tensor, step: PackedStep) -> Tensor:
        """Return the edited activation, (tokens, width); what lies behind the tokens of the step is padding."""
        n = len(step.positions)
        h = activation[:n].float()
        for edit in self._edits:
            h = edit(h, step)
        h = h.to(activation.dtype)
        return h if n == len(activation) else torch.cat([h, activation[n:]])


def _tables(edits: Sequence[Shipped]) -> list[list[Shipped]]:
    """Return the edits one by one, and constants that follow each other, no two in one prompt, as one group."""
    groups: list[list[Shipped]] = []
    for one in edits:
        if groups and all(_fit_in_a_table(one, other) for other in groups[-1]):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _fit_in_a_table(one: Shipped, other: Shipped) -> bool:
    if one.open is None or other.open is None or one.placed.scope != other.placed.scope:
        return False
    constant = all(shipped.placed.edit.constant() is not None for shipped in (one, other))
    return constant and not bool((one.open & other.open).any())


class _Table:
    """Constants of several steerings in one batch: a table of vectors whose first row is zero, and a row by prompt."""

    def __init__(self, group: Sequence[Shipped], device: torch.device) -> None:
        vectors = [constant for one in group if (constant := one.placed.edit.constant()) is not None]
        widest = max(vectors, key=len)  # one value may stand for all of a state
        self._table = torch.stack([torch.zeros_like(widest), *(v.expand_as(widest) for v in vectors)]).to(device)
        self._scope = group[0].placed.scope
        opened = torch.stack([one.open for one in group if one.open is not None])
        self._rows = (opened * torch.arange(1, len(group) + 1)[:, None]).sum(0).to(device)

    def __call__(self, h: Tensor, step: PackedStep) -> Tensor:
        return h + self._table[self._rows[step.prompts] * step.mask(self._scope)[:, 0]]


class _On:
    """One edit on a device."""

    def __init__(self, shipped: Shipped, device: torch.device) -> None:
        self._edit = shipped.placed.edit.to(device).eval()
        self._scope = shipped.placed.scope
        self._constant = self._edit.constant()
        self._open, self._state, self._values = (
            None if tensor is None else tensor.to(device) for tensor in (shipped.open, shipped.state, shipped.values)
        )

    def __call__(self, h: Tensor, step: PackedStep) -> Tensor:
        mask = step.mask(self._scope)
        if self._open is not None:
            mask = mask & self._open[step.prompts][:, None]
        if self._constant is not None:
            return torch.where(mask, h + self._constant, h)
        inside = mask[:, 0].nonzero()[:, 0]  # what lies outside is not computed
        if not len(inside):
            return h
        edited = self._edit(h[inside][:, None], self._begun(step.at(inside)))[:, 0]
        return h.index_copy(0, inside, edited)

    def _begun(self, step: PackedStep) -> Tensor | None:
        """Return the state of the edit for each token, as if each were a row of one position."""
        if self._values is not None:
            known = step.positions < self._values.shape[1]
            at = step.positions.clamp(max=self._values.shape[1] - 1)
            return (self._values[step.prompts, at] * (known & (step.positions < step.ends))[:, None])[:, None]
        return None if self._state is None else self._state[step.prompts]
