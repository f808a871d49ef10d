"""Ranges of settings, which stand beside their types: `n: Annotated[int, Range(1, 64)] = 4`, and the usual by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Annotated, Literal

Shape = Mapping[str, int]
"""Numbers of a model that are ends of ranges: `last_layer`, `n_heads` of all layers, `width`. Some may not be known."""
UNKNOWN: Shape = MappingProxyType({})


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be: `Annotated[int, Range(1, 64)]`, or `Annotated[float, Range(above=0)]`.

    What is outside is refused before a model is loaded, and what is above a number of the model before data are.
    """

    least: float = -inf
    """The lowest number."""
    most: float | Literal["last_layer", "n_heads", "width"] = inf
    """The highest one, or what the model that is steered has: its last block, its attention heads, its width."""
    above: float = -inf
    """A lower end that is not allowed itself."""
    below: float = inf
    """An upper end that is not allowed itself."""

    def holds(self, value: float, shape: Shape = UNKNOWN) -> bool:
        """Tell whether a number is in the range, on a model of this shape."""
        return self.least <= value <= self._most(shape) and self.above < value < self.below

    def text(self, shape: Shape = UNKNOWN) -> str:
        """Return the range in words that follow those of the type: `from 1 to 64`, `of 1 or more`."""
        most = self._most(shape)
        low = f"above {self.above:g}" if self.above > self.least else f"from {self.least:g}"
        high = f"below {self.below:g}" if self.below <= most else f"{most:g}"
        if min(most, self.below) == inf:
            return low if self.above > self.least else f"of {self.least:g} or more"
        if max(self.least, self.above) == -inf:
            return high if self.below <= most else f"of {high} or less"
        joint = "to" if self.least >= self.above else "and" if self.below <= most else "and up to"
        return f"{low} {joint} {high}"

    def _most(self, shape: Shape) -> float:
        return shape.get(self.most, inf) if isinstance(self.most, str) else self.most


Whole = Annotated[int, Range(0)]
"""A whole number, 0 or more."""
Count = Annotated[int, Range(1)]
"""A whole number, 1 or more."""
Positive = Annotated[float, Range(above=0)]
"""A number above 0."""
NotNegative = Annotated[float, Range(0)]
"""A number, 0 or more."""
Share = Annotated[float, Range(0, 1)]
"""A number from 0 to 1."""
Layer = Annotated[int, Range(0, "last_layer")] | Annotated[float, Range(0, below=1)]
"""A block from 0, or a share of the depth below 1: what `block_at` and `middle_layer` read."""
Heads = Annotated[int, Range(1, "n_heads")] | Annotated[float, Range(above=0, below=1)]
"""A number of attention heads, or a share of all below 1."""
