"""Edit operators shared by methods."""

from typing import Any

import torch
from torch import Tensor

from steerbench.errors import SteerbenchError
from steerbench.steering.annotations import as_floats
from steerbench.steering.parts import Edit, PerPosition


class Add(Edit):
    """h + strength * vector.

    `vector` has the width of the site; `strength` is in units of the vector's length.
    """

    vector: Tensor
    """(width,), float32"""

    def __init__(self, vector: Tensor, strength: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("vector", as_floats("vector", vector, 1))
        self.strength = strength

    def constant(self) -> Tensor:
        """Return strength * vector."""
        return self.strength * self.vector

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Add the vector at every position."""
        return torch.add(h, self.vector, alpha=self.strength)


class AddInFront(Edit):
    """h + strength * vectors, at the first positions of the prompt.

    `vectors` is (n, width): row k goes to position `first` + k of the prompt, padding not counted. What falls behind
    the prompt is left out.
    """

    vectors: Tensor
    """(n, width), float32"""
    start_reads_states = False

    def __init__(self, vectors: Tensor, first: int = 0, strength: float = 1.0) -> None:
        super().__init__()
        if first < 0:
            raise SteerbenchError(f"first={first} is no position of a prompt; give 0 or more.")
        self.register_buffer("vectors", as_floats("vectors", vectors, 2))
        self.first = first
        self.strength = strength

    def start(self, prompt: Tensor, mask: Tensor) -> PerPosition:
        """Lay the vectors out on each row, (batch, positions, width)."""
        row = mask.long().cumsum(1) - 1 - self.first
        covered = mask & (row >= 0) & (row < len(self.vectors))
        return PerPosition(self.vectors[row.clamp(0, len(self.vectors) - 1)] * covered[..., None])

    def forward(self, h: Tensor, state: Tensor) -> Tensor:
        """Add to each position what lies on it."""
        return torch.add(h, state, alpha=self.strength)
