"""Logits that are numbers, and what to say of those that are not."""

import torch
from torch import Tensor

from steerbench.errors import SteerbenchError
from steerbench.steering.steering import Steering


def check_finite(logits: Tensor, source: str) -> None:
    """Raise `not_finite` if any row of logits has NaN, or no token left; a single token may be forbidden with -inf."""
    if not bool(torch.isfinite(logits.amax(-1)).all()):
        raise not_finite(source)


def origin_of(steering: Steering) -> str:
    """Say what makes the states that the logits come from."""
    edits = [f"{type(p.edit).__name__} at {p.site}" for p in steering.edits]
    return f"the edit {', '.join(edits)}" if edits else "the language model itself"


def not_finite(source: str) -> SteerbenchError:
    """Return the error that names what made the logits."""
    return SteerbenchError(f"{source} gave NaN or infinite logits; lower its strength, or use a wider --dtype.")
