"""Choices from a seed, and how much information each of them holds."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
Levels = Mapping[T, tuple[float, float]]
"""Value -> (share without any shift, level)."""


class Draw:
    """A source of choices that keeps count of their information in nats."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.nats = rng, 0.0

    def one(self, options: Sequence[T]) -> T:
        """Draw one of the options, all alike."""
        self.nats += math.log(len(options))
        return self.rng.choice(options)

    def some(self, options: Sequence[T], count: int, *, in_order: bool = False) -> list[T]:
        """Draw some of the options, in the order drawn or in their own."""
        ways = math.comb if in_order else math.perm
        self.nats += math.log(ways(len(options), count))
        picks = self.rng.sample(range(len(options)), count)
        return [options[i] for i in (sorted(picks) if in_order else picks)]

    def weighted(self, weights: Mapping[T, float]) -> T:
        """Draw a key by its weight."""
        value = self.rng.choices(list(weights), list(weights.values()))[0]
        self.nats -= math.log(weights[value] / sum(weights.values()))
        return value

    def level(self, levels: Levels[T], shift: float) -> T:
        """Draw a value whose odds a shift moves towards high levels (or low ones, if negative)."""
        return self.weighted({value: share * math.exp(shift * level) for value, (share, level) in levels.items()})

    def chance(self, share: float) -> bool:
        """Draw a yes or no."""
        return self.weighted({True: share, False: 1 - share})
