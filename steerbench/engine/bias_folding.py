"""Fold constants into biases: adding one vector at every position is what a bias does, and it costs no time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from steerbench.models.sites import Anatomy, Place
from steerbench.steering.parts import PlacedEdit, RankedEdit

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@contextmanager
def folded(anatomy: Anatomy, edits: Sequence[PlacedEdit]) -> Iterator[list[PlacedEdit]]:
    """Fold what can be folded into the biases of the attentions' output projections, and yield the other edits.

    Foldable are the edits of a place, `z` or `attn_out`, if all of them are constants with scope `all` and they move
    something. Padding and what follows the end of a response are moved, too: nothing may be read there. Nothing is
    folded beside an edit that asks for states of the unsteered model. On exit the model has its own biases again, the
    same objects.
    """
    constants = _constants(anatomy, edits)
    moved = _moved_biases(constants)
    own = {module: module.bias for module in moved}
    try:
        for module, bias in moved.items():
            module.bias = nn.Parameter(bias, requires_grad=False)
        yield [p for p in edits if not (_of_projection(p) and anatomy.place(p.site) in constants)]
    finally:
        for module, original in own.items():
            module.bias = original


def _constants(anatomy: Anatomy, edits: Sequence[PlacedEdit]) -> dict[Place, Tensor]:
    """Return the sum of the vectors at each place that can be folded, (width,)."""
    if any(isinstance(p.edit, RankedEdit) or p.gate for p in edits):
        return {}
    groups: dict[Place, list[PlacedEdit]] = {}
    for placed in filter(_of_projection, edits):
        groups.setdefault(anatomy.place(placed.site), []).append(placed)
    constants = {place: c for place, group in groups.items() if (c := _constant(place, group)) is not None}
    return {place: constant for place, constant in constants.items() if bool(constant.any())}


def _of_projection(placed: PlacedEdit) -> bool:
    return placed.site.name in {"z", "attn_out"}


@torch.no_grad()
def _constant(place: Place, edits: Sequence[PlacedEdit]) -> Tensor | None:
    """Return what all edits of a place add together, in float32 on the module's device; None if it is no constant."""
    module = place.module
    if not _is_plain(module):
        return None
    width = _matrix(module).shape[1 if place.side == "input" else 0]
    total = _matrix(module).new_zeros(width, dtype=torch.promote_types(_matrix(module).dtype, torch.float32))
    for p in edits:
        constant = p.edit.constant()
        if constant is None or p.scope != "all" or constant.shape != (width,):
            return None
        total += constant.to(total.device)
    return total


@torch.no_grad()
def _moved_biases(constants: dict[Place, Tensor]) -> dict[Any, Tensor]:
    """Return the bias of each projection with its constants, summed up in float32 and cast once."""
    biases: dict[Any, Tensor] = {}
    for place, constant in constants.items():
        module: Any = place.module
        moved = moved_bias(module, constant, place.side)
        start = biases.get(module, torch.zeros_like(moved) if module.bias is None else module.bias)
        biases[module] = start + moved
    return {module: bias.to(module.weight.dtype) for module, bias in biases.items()}


def moved_bias(module: nn.Module, constant: Tensor, side: Literal["input", "output"]) -> Tensor:
    """Return what a vector added to the input or the output of a linear map adds to its bias, (outputs,)."""
    return _matrix(module).to(constant.dtype) @ constant if side == "input" else constant


def _is_plain(module: nn.Module) -> bool:
    """Tell a linear map with weights as they were trained; quantised and offloaded ones are left to hooks."""
    weight = module.weight
    plain = type(weight) is nn.Parameter and weight.dtype in _DTYPES and not weight.is_meta
    return plain and isinstance(module, nn.Linear | Conv1D)


def _matrix(module: nn.Module) -> Tensor:
    """Return the weight as (outputs, inputs)."""
    weight = module.get_parameter("weight")
    return weight.T if isinstance(module, Conv1D) else weight
