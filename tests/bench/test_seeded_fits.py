"""A record says whether its fit asked for the seed: with one seed alone, nothing else tells whether another matters."""

from dataclasses import dataclass

import pytest

from steerbench import FitContext, Steerer, Steering
from steerbench.contract import tiny
from steerbench.learn.fitting import joined


@dataclass(frozen=True, kw_only=True)
class Fixed(Steerer):
    """Learns from nothing that is drawn."""

    def fit(self, context: FitContext) -> Steering:
        """Read the prompts."""
        assert context.queries
        return Steering()


@dataclass(frozen=True, kw_only=True)
class Drawing(Steerer):
    """Draws random numbers."""

    def fit(self, context: FitContext) -> Steering:
        """Draw one."""
        context.generator("one")
        return Steering()


@pytest.mark.parametrize(
    ("parts", "seeded"), [([Fixed()], False), ([Drawing()], True), ([Drawing(), Fixed()], True)], ids=str
)
def test_what_asks_for_the_seed_is_noted(parts: list[Steerer], seeded: bool) -> None:
    context = FitContext(lm=tiny.language_model(), examples=tiny.examples()[:2], reward=tiny.VowelReward(), seed=3)
    joined(parts, [str(i) for i in range(len(parts))], context)
    assert context.seeded is seeded
    assert context.seed == 3
