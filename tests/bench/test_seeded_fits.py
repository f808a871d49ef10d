"""A record says whether its fit asked for the seed: with one seed alone, nothing else tells whether another matters."""

from dataclasses import dataclass

import pytest

from steerbench import Decoding, FitContext, Steerer, Steering
from steerbench.contract import tiny
from steerbench.learn import self_generated
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


@dataclass(frozen=True, kw_only=True)
class Reading(Steerer):
    """Reads rollouts, and pairs that the model writes."""

    def fit(self, context: FitContext) -> Steering:
        """Read them."""
        assert context.rollouts()
        assert self_generated(context).dropped
        return Steering()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_responses_hang_on_the_seed_where_they_are_sampled_whoever_reads_them_first(temperature: float) -> None:
    decoding = Decoding(max_new_tokens=4, temperature=temperature)
    lm, reward = tiny.language_model(), tiny.VowelReward()
    context = FitContext(lm=lm, examples=tiny.examples()[:2], reward=reward, decoding=decoding, seed=3)
    for _ in range(2):  # the second one finds what the first one drew
        context.seeded = False
        joined([Reading()], ["reading"], context)
        assert context.seeded is (temperature > 0)


@pytest.mark.parametrize(
    ("parts", "seeded"), [([Fixed()], False), ([Drawing()], True), ([Drawing(), Fixed()], True)], ids=str
)
def test_what_asks_for_the_seed_is_noted(parts: list[Steerer], seeded: bool) -> None:
    context = FitContext(lm=tiny.language_model(), examples=tiny.examples()[:2], reward=tiny.VowelReward(), seed=3)
    joined(parts, [str(i) for i in range(len(parts))], context)
    assert context.seeded is seeded
    assert context.seed == 3
