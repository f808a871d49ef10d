"""The joint space of what tuning searches: a coarse spread over all of it, and the points one step from another."""

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
from scipy.stats.qmc import LatinHypercube

from steerbench.records.search_range import is_ordered

Cell = tuple[int, ...]
"""The index of each hyperparameter's value: a point of the space."""


class SearchSpace:
    """Values by hyperparameter, numbers among them in ascending order; what is drawn depends on `seed` alone."""

    def __init__(self, values: Mapping[str, Sequence[Any]], seed: int) -> None:
        self.values = values
        self.seed = seed
        self.size = prod(map(len, values.values()))
        self._random = np.random.default_rng(seed)

    def point(self, cell: Cell) -> dict[str, Any]:
        """Return the values that a cell stands for, by hyperparameter."""
        return {name: values[i] for (name, values), i in zip(self.values.items(), cell, strict=True)}

    def cell(self, point: Mapping[str, Any]) -> Cell | None:
        """Return the cell of a point, or None where one of its values is none of those searched."""
        if any(point[name] not in values for name, values in self.values.items()):
            return None
        return tuple(list(values).index(point[name]) for name, values in self.values.items())

    def coarse(self, n: int) -> list[Cell]:
        """Return up to `n` distinct cells, or the whole space in its order where it has no more.

        Spread by a Latin hypercube: each hyperparameter's range is cut into `n` equal stretches, and each stretch has
        one cell. With four, the layers are one of each quarter of the depth.
        """
        sizes = [len(values) for values in self.values.values()]
        if self.size <= n:
            return list(product(*map(range, sizes)))
        shares = LatinHypercube(len(sizes), rng=self._random).random(n)
        return list(dict.fromkeys(tuple(row) for row in (shares * sizes).astype(int).tolist()))

    def neighbour(self, tried: Sequence[Cell], best: Cell) -> Cell:
        """Return a cell not tried, one step from the best; where all of those were, from the first that has one.

        A step changes one hyperparameter: a number to the next or the one before, another value to any other. Some cell
        must be left.
        """
        for centre in (best, *tried):
            around = [cell for cell in self._around(centre) if cell not in tried]
            if around:
                return around[self._random.integers(len(around))]
        raise ValueError("every cell was tried")

    def _around(self, cell: Cell) -> list[Cell]:
        found = []
        for k, values in enumerate(self.values.values()):
            near = {cell[k] - 1, cell[k] + 1} if is_ordered(values) else set(range(len(values))) - {cell[k]}
            found += [(*cell[:k], i, *cell[k + 1 :]) for i in sorted(near) if 0 <= i < len(values)]
        return found
