"""InfAlign in the choice: the calibrated reward, its odds, and its ends."""

from math import exp
from typing import Any

import numpy as np
import pytest
import torch
from naive_search import Text, search
from scipy.stats import rankdata

from steerbench import Decoding, FitContext, LanguageModel, Reward, SteerbenchError, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import Dialogue, user
from steerbench.edits import Blocks
from steerbench.seeds import generator_for

PROMPTS = [user("How do I bake a cake?"), user("Hi"), user("Why is the sky blue?"), user("x")]
SAMPLED = Decoding(max_new_tokens=6, temperature=1.0)
REWARD = tiny.VowelReward()


def method(lm: LanguageModel, name: str = "inf_align", **fields: Any) -> Steering:
    return load("methods", name)(**fields).fit(FitContext(lm=lm, examples=[], reward=REWARD, decoding=SAMPLED))


def run(lm: LanguageModel, steering: Steering, reward: Reward = REWARD) -> list[Any]:
    return generate(lm, PROMPTS, steering, SAMPLED, reward=reward)


def naive(lm: LanguageModel, dialogue: Dialogue, n: int, tilt: float, beta: float) -> tuple[int, ...]:
    def choose(texts: list[Text], attempt: int) -> int:
        rewards = REWARD.score([dialogue] * n, [lm.cut(t.ids).text for t in texts]).numpy()
        quantiles = (rankdata(rewards) - 1) / (n - 1)
        phi = [(exp(tilt * u) - 1) / (exp(tilt) - 1) if tilt else u for u in quantiles]
        odds = torch.tensor([exp(p / beta) for p in phi], dtype=torch.float64)
        generator = generator_for(0, 0, "choice", dialogue)
        return int(torch.multinomial(odds / odds.sum(), 1, generator=generator))

    return search(lm, dialogue, n, Blocks(), SAMPLED, choose).ids


@pytest.mark.parametrize(("n", "tilt", "beta"), [(4, 10.0, 0.1), (5, 0.0, 0.3), (5, -10.0, 0.2)])
def test_it_draws_by_the_transformed_quantile(llama: LanguageModel, n: int, tilt: float, beta: float) -> None:
    found = run(llama, method(llama, n=n, tilt=tilt, beta=beta))
    assert [r.ids for r in found] == [naive(llama, d, n, tilt, beta) for d in PROMPTS]


class Scaled(Reward):
    """The same order on another scale, bent."""

    name, revision = "scaled", "1"

    def score(self, dialogues: Any, responses: Any, progress: Any = None) -> torch.Tensor:
        return torch.exp(30 * REWARD.score(dialogues, responses)) - 7


def test_the_scale_of_the_reward_does_not_matter(llama: LanguageModel) -> None:
    steering = method(llama, beta=0.3)
    assert run(llama, steering) == run(llama, steering, Scaled())


def test_its_ends(llama: LanguageModel) -> None:
    best = run(llama, method(llama, "best_of_n", n=6))
    assert run(llama, method(llama, n=6, beta=1e-9)) == best
    assert run(llama, method(llama, n=1)) == generate(llama, PROMPTS, decoding=SAMPLED)
    assert run(llama, method(llama, n=6, beta=1e9)) != best


def test_its_kl_is_that_of_best_of_n_at_most(llama: LanguageModel) -> None:
    decode = method(llama, n=8).decode
    assert decode is not None
    assert decode.sequence_kl == pytest.approx(np.log(8) - 7 / 8)


@pytest.mark.parametrize("fields", [{"n": 0}, {"beta": 0.0}, {"tilt": float("inf")}])
def test_settings_out_of_range_are_refused(llama: LanguageModel, fields: dict[str, Any]) -> None:
    with pytest.raises(SteerbenchError, match=rf"^InfAlign: {next(iter(fields))} must be "):
        method(llama, **fields)
