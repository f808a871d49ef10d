"""Parts as files: a JSON record and named tensors, data and never code."""

import inspect
from typing import Any

import torch
from torch import Tensor

from steerbench.errors import SteerbenchError
from steerbench.plugins import registry
from steerbench.steering.additions import Add, AddInFront
from steerbench.steering.annotations import check_arguments
from steerbench.steering.ascent import Ascent
from steerbench.steering.gates import ConditionGate
from steerbench.steering.instructions import Instruction, Routed, Shown
from steerbench.steering.low_rank import LowRank
from steerbench.steering.parts import Edit, Gate, Part
from steerbench.steering.projections import Ablate, Gated, RemoveBoost
from steerbench.steering.transports import Rotate, Transport

SCHEMA_VERSION = 1

_OWN: dict[str, type[Part]] = {
    cls.__name__: cls
    for cls in (
        Add,
        AddInFront,
        Ablate,
        Ascent,
        ConditionGate,
        Gated,
        Instruction,
        LowRank,
        RemoveBoost,
        Rotate,
        Routed,
        Shown,
        Transport,
    )
}
"""The parts of `steerbench.edits`, under whose public names they are saved, wherever their files lie."""
_FORMER = ("steerbench.ascent", "steerbench.projections")
"""What the first files call the home of some of them."""


def pack(part: Part, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Split a part into a JSON record and named tensors."""
    values: dict[str, Any] = {}
    for name in list(inspect.signature(type(part)).parameters):
        value = getattr(part, name)
        if isinstance(value, Tensor):
            tensors[f"{prefix}.{name}"] = _own(value)
        elif isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) for v in value):
            tensors |= {f"{prefix}.{name}.{i}": _own(t) for i, t in enumerate(value)}
        else:
            values[name] = value
    cls = type(part)
    own = _OWN.get(cls.__name__) is cls
    return {"class": f"steerbench.edits:{cls.__name__}" if own else registry.qualified(cls), "values": values}


def unpack(saved: dict[str, Any], prefix: str, tensors: dict[str, Tensor], kind: type[Part]) -> Any:
    """Make a part of what `pack` returned, and take its tensors out of the others.

    Raises SteerbenchError if it is not of this kind, or if its arguments do not fit its class.
    """
    cls = _resolve(saved["class"])
    if not issubclass(cls, kind):
        raise SteerbenchError(f"{saved['class']} is no {kind.__name__}.")
    try:
        arguments = _arguments(saved["values"], prefix, tensors)
        check_arguments(cls, arguments, bounded=issubclass(cls, Edit | Gate))  # logits may be infinite
        return cls(**arguments)
    except Exception as error:  # constructors fail in many ways at arguments that they never gave
        raise SteerbenchError(
            f"{prefix} does not fit its class, {saved['class']}: {str(error) or repr(error)}"
        ) from error


def _arguments(values: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the values and tensors of one part by name; `name.0`, `name.1` and so on make a list."""
    own = {key: tensors.pop(key) for key in list(tensors) if key.startswith(f"{prefix}.")}
    found: dict[str, Any] = {}
    for key, tensor in own.items():
        name, _, index = key.removeprefix(f"{prefix}.").partition(".")
        count = sum(other.startswith(f"{prefix}.{name}.") for other in own)
        found[name] = [own[f"{prefix}.{name}.{i}"] for i in range(count)] if index else tensor
    if twice := sorted(found.keys() & values.keys()):
        raise ValueError(f"{twice[0]} is there as a tensor and as a value")
    return {**values, **found}


def _resolve(reference: str) -> type[Any]:
    home, _, name = reference.partition(":")
    known = name in _OWN and home in ("steerbench.edits", *_FORMER)
    return _OWN[name] if known else registry.resolve(reference)


def _own(tensor: Tensor) -> Tensor:
    """Return a copy: safetensors refuses tensors that share memory, as rows of a matrix do, and parts used twice."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
