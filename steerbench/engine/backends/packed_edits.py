"""The edits of one place, applied to packed activations: in float32, and added to the activation once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steerbench.engine.backends.packed_step import PackedStep
from steerbench.engine.backends.shipment import Shipped


class PackedEdits:
    """Edits that act one after another on the tokens of a step."""

    def __init__(self, edits: Sequence[Shipped], device: torch.device) -> None:
        self._edits = [_On(one, device) for one in edits]

    def __call__(self, activation: Tensor, step: PackedStep) -> Tensor:
        """Return the edited activation, (tokens, width); what lies behind the tokens of the step is padding."""
        n = len(step.positions)
        h = activation[:n].float()
        for edit in self._edits:
            h = edit(h, step)
        h = h.to(activation.dtype)
        return h if n == len(activation) else torch.cat([h, activation[n:]])


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
