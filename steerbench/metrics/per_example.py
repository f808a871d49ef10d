"""What all metric modules share: held in memory, and never a NaN."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import evaluate

from steerbench.errors import SteerbenchError


class PerExampleMetric(evaluate.Metric, ABC):
    """An `evaluate` module whose result holds the mean and the value of every example, in order."""

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **options: Any) -> None:
        super().__init__(config_name, keep_in_memory, **options)

    @abstractmethod
    def _compute(self, **inputs: Any) -> dict[str, Any]:
        """Abstract, so that `evaluate.load` does not take this class for the module it looks for."""

    def _build_data_dir(self) -> str:
        # evaluate makes a folder in the user's cache even for a module that stays in memory
        return "" if self.keep_in_memory else str(super()._build_data_dir())


def summary(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Return `{name: mean, "per_example": values}`. Raises SteerbenchError on no values and on one not finite."""
    if not values:
        raise SteerbenchError(f"{name}: there is nothing to score; pass at least one example.")
    bad = [i for i, value in enumerate(values) if not math.isfinite(value)]
    if bad:
        raise SteerbenchError(
            f"{name}: {len(bad)} of {len(values)} values are not finite (first: example {bad[0]}); "
            "check the model that made them, in float32 if need be."
        )
    return {name: math.fsum(values) / len(values), "per_example": list(values)}


def count_empty(responses: Sequence[str]) -> int:
    """Return how many responses are empty or blank."""
    return sum(not response.strip() for response in responses)
