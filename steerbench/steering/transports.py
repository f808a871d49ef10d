"""Edit operators that move states without a fixed vector: transport coordinate by coordinate, rotation in a plane."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerbench.errors import SteerbenchError
from steerbench.steering.annotations import as_floats
from steerbench.steering.parts import Edit


class Transport(Edit):
    """(1 - strength) h + strength (omega h + beta), coordinate by coordinate; strength is from 0 to 1.

    `omega` and `beta` are (width,). `support` is empty, or the lowest and the highest value of each coordinate that is
    moved, (width,) each: what lies outside stays as it is.
    """

    omega: Tensor
    """(width,), float32"""
    beta: Tensor
    """(width,), float32"""

    def __init__(self, omega: Tensor, beta: Tensor, strength: float = 1.0, support: Sequence[Tensor] = ()) -> None:
        super().__init__()
        if not 0 <= strength <= 1:
            raise SteerbenchError(f"strength={strength} is no share of a transport; give 0 to 1.")
        if len(support) not in (0, 2) or omega.shape != beta.shape:
            raise ValueError("a transport has omega and beta of one shape, and a support of two vectors or none")
        self.register_buffer("omega", as_floats("omega", omega, 1))
        self.register_buffer("beta", as_floats("beta", beta, 1))
        for name, bound in zip(("low", "high"), support, strict=False):
            self.register_buffer(name, as_floats(name, bound, 1))
        self.strength, self._bounded = strength, bool(support)

    @property
    def support(self) -> list[Tensor]:
        """Lowest and highest value that is moved, or nothing."""
        return [self.get_buffer("low"), self.get_buffer("high")] if self._bounded else []

    def constant(self) -> Tensor | None:
        """Return strength * beta where omega is 1 everywhere and nothing is bounded: Mean-AcT."""
        return self.strength * self.beta if not self._bounded and bool((self.omega == 1).all()) else None

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Transport every position."""
        moved = h + self.strength * ((self.omega - 1) * h + self.beta)
        if not self._bounded:
            return moved
        low, high = self.support
        return torch.where((low <= h) & (h <= high), moved, h)


class Rotate(Edit):
    """Turn the component in a plane to an angle; its length, and all outside of the plane, stay.

    h - P h + |P h| (cos(angle) b1 + sin(angle) b2), for the orthonormal rows b1 and b2 of `plane`, (2, width), and the
    projector P on it. `angle` is in degrees from b1. With `one_sided`, only states with <h, b1> > 0 are turned.
    `strength` is the share of the way, on the chord.
    """

    plane: Tensor
    """(2, width), float32"""

    def __init__(self, plane: Tensor, angle: float, strength: float = 1.0, one_sided: bool = False) -> None:
        super().__init__()
        if plane.shape[0] != 2:
            raise ValueError(f"a plane has two rows, not {plane.shape[0]}")
        self.register_buffer("plane", as_floats("plane", plane, 2))
        self.angle, self.strength, self.one_sided = angle, strength, one_sided

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Turn every position."""
        inside = h @ self.plane.T
        radians = math.radians(self.angle)
        aim = torch.tensor([math.cos(radians), math.sin(radians)], device=h.device, dtype=h.dtype)
        change = inside.norm(dim=-1, keepdim=True) * aim - inside
        if self.one_sided:
            change = change * (inside[..., :1] > 0)
        turned: Tensor = h + self.strength * (change @ self.plane)
        return turned
