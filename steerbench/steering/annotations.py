"""What comes from a file, held against the annotations of the class that it is for."""

import inspect
import math
import reprlib
from collections.abc import Collection, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

_ARRAYS = (list, tuple, Sequence, Collection)
_OBJECTS = (dict, Mapping)
_LARGEST: dict[type, float] = {float: torch.finfo(torch.float32).max, int: 2**63 - 1}
"""What torch computes with."""


def check_arguments(cls: type[Any], arguments: Mapping[str, Any], *, bounded: bool) -> None:
    """Check the names, the types and the numbers of a constructor's arguments, as far as its annotations tell.

    No number may be NaN, and none infinite where `bounded`. Raises ValueError that says which argument is wrong.
    """
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as error:
        raise ValueError(str(error)) from error
    hints = _hints(cls)
    for name, value in arguments.items():
        if name in hints and not _is_of(value, hints[name]):
            wanted = hints[name].__name__ if isinstance(hints[name], type) else hints[name]
            raise ValueError(f"{name} is {_shown(value)}, not {wanted}")
        if fault := _fault(value, bounded):
            raise ValueError(f"{name} holds {fault}")


def as_floats(name: str, tensor: Tensor, dimensions: int) -> Tensor:
    """Return a tensor in float32. Raises ValueError unless it holds floats in so many dimensions, and at least one."""
    if not tensor.is_floating_point() or tensor.dim() != dimensions or not tensor.numel():
        one = "one dimension" if dimensions == 1 else f"{dimensions} dimensions"
        raise ValueError(f"{name} is {_shown(tensor)}; it must be of a float type, have {one}, and not be empty")
    return tensor.float()


def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        return get_type_hints(cls.__init__)
    except Exception:  # an annotation may name what only a type checker sees
        return {}


def _is_of(value: Any, hint: Any) -> bool:
    """Return whether a value is what an annotation says, in JSON's terms. Of an unknown annotation everything is."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_of(value, each) for each in inner)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if origin in _ARRAYS:
        kinds = [kind for kind in inner if kind is not ...] or [Any]
        return isinstance(value, list) and all(any(_is_of(each, kind) for kind in kinds) for each in value)
    if origin in _OBJECTS:
        return isinstance(value, dict) and all(_is_of(each, inner[-1] if inner else Any) for each in value.values())
    if origin in (int, float):
        return isinstance(value, int | origin) and not isinstance(value, bool)
    return isinstance(value, origin) if origin in (bool, str, NoneType, Tensor) else True


def _fault(value: Any, bounded: bool) -> str | None:
    """Return what a value holds that is no number to compute with, if it holds such."""
    if isinstance(value, list | dict):
        each = value.values() if isinstance(value, dict) else value
        return next((fault for fault in (_fault(one, bounded) for one in each) if fault), None)
    if isinstance(value, Tensor):
        numbers = value.float() if value.is_floating_point() else torch.zeros(())
        return "NaN" if numbers.isnan().any() else "an infinite number" if bounded and numbers.isinf().any() else None
    if not isinstance(value, int | float):
        return None
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    largest = _LARGEST[float if isinstance(value, float) else int]
    return "a number that is too large" if bounded and abs(value) > largest else None


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    return reprlib.repr(value)
