"""Gates shared by methods: whether an edit acts on a prompt, decided by one state of the unsteered model."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from steerbench.errors import SteerbenchError, suggest
from steerbench.steering.annotations import as_floats
from steerbench.steering.parts import Gate, GatePool

Measure = Literal["tanh", "cosine", "component"]
"""What a condition measures of a query q, with the unit vector c.

- `tanh`: cos(q, tanh(<q, c> c)): CAST as published; blind to the sign of <q, c>, and in units of the state
- `cosine`: cos(q, c)
- `component`: <q, c>, in units of the state
"""


class ConditionGate(Gate):
    """Open where what `measure` says of the query is above `threshold`, or below it with `above=False`.

    `direction` is (width,), of any length; `threshold` is in the units of what is measured.
    """

    direction: Tensor
    """(width,), float32"""

    def __init__(
        self,
        site: str,
        direction: Tensor,
        threshold: float,
        measure: Measure = "tanh",
        above: bool = True,
        pool: GatePool = "prompt_mean",
    ) -> None:
        super().__init__()
        if measure not in get_args(Measure):
            raise SteerbenchError(suggest("measure of a gate", measure, list(get_args(Measure))))
        if pool not in get_args(GatePool):
            raise SteerbenchError(suggest("pool of a gate", pool, list(get_args(GatePool))))
        self.register_buffer("direction", as_floats("direction", direction, 1))
        self.site, self.pool = site, pool
        self.threshold, self.measure, self.above = threshold, measure, above

    def measured(self, query: Tensor) -> Tensor:
        """Return what the gate measures of each query, (rows,); `query` is (rows, width)."""
        direction = normalize(self.direction, dim=0)
        along = query @ direction
        if self.measure == "component":
            return along
        if self.measure == "tanh":
            return cosine_similarity(query, torch.tanh(along[:, None] * direction), dim=1)
        return cosine_similarity(query, direction[None], dim=1)

    def opens(self, query: Tensor) -> Tensor:
        """Compare what is measured with the threshold."""
        found = self.measured(query)
        return found > self.threshold if self.above else found < self.threshold
