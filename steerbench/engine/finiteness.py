"""Logits that are numbers, and what to say of those that are not."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

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


class Watch(LogitsProcessor):
    """Notices NaN without waiting for the device. A single token may be forbidden with -inf, all of them may not."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._bad: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Look at the scores, and return them as they are."""
        bad = ~torch.isfinite(scores.amax(-1)).all()  # NaN beats every number
        self._bad = bad if self._bad is None else self._bad | bad
        return scores

    def check(self) -> None:
        """Raise SteerbenchError if any logit was NaN or infinite."""
        if self._bad is not None and bool(self._bad):
            raise not_finite(self._source)
