"""Edit operators shared by methods."""

from typing import Any

import torch
from torch import Tensor

from steerbench.steering import Edit


class Add(Edit):
    """h + strength * vector.

    `vector` has the width of the site; `strength` is in units of the vector's length.
    """

    vector: Tensor

    def __init__(self, vector: Tensor, strength: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("vector", vector.float())
        self.strength = strength

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Add the vector at every position."""
        return torch.add(h, self.vector, alpha=self.strength)
