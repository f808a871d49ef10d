"""CARDS, against its formula computed one segment at a time, and in its special cases."""

from math import exp, log
from statistics import mean
from typing import Any

import pytest
import torch
from naive_search import Text, search
from thorough import mostly_slow

from steerbench import Decoding, FitContext, LanguageModel, SteerbenchError, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import Dialogue, user
from steerbench.edits import Blocks
from steerbench.seeds import generator_for

PROMPTS = [user("How do I bake a cake?"), user("Hi"), user("Why is the sky blue?")]
SAMPLED = Decoding(max_new_tokens=9, temperature=1.0)
ACCEPT = ("soft", "hard")
REWARD = tiny.VowelReward()


def method(lm: LanguageModel, **fields: Any) -> Steering:
    context = FitContext(lm=lm, examples=tiny.examples()[:24], reward=REWARD, decoding=SAMPLED)
    return load("methods", "cards")(**fields).fit(context)


def run(lm: LanguageModel, steering: Steering, **settings: Any) -> list[Any]:
    return generate(lm, PROMPTS, steering, SAMPLED, reward=REWARD, **settings)


def naive(
    lm: LanguageModel, dialogue: Dialogue, n: int, tries: int, goal: float, hard: bool = False
) -> tuple[int, ...]:
    """Accept a segment where the text so far reaches the line from r0 to r*, or nearly so."""
    alpha, beta = 0.5, 0.2
    start = (1 - alpha) * float(REWARD.score([dialogue], [""])) + alpha * goal
    generator = generator_for(0, 0, "choice", dialogue)

    def choose(texts: list[Text], attempt: int) -> int | None:
        rewards = REWARD.score([dialogue] * n, [lm.cut(t.ids).text for t in texts]).tolist()
        u = torch.rand(n, generator=generator, dtype=torch.float64).tolist()
        for k in range(n):
            tau = min(start + len(lm.cut(texts[k].ids).ids) / SAMPLED.max_new_tokens * (goal - start), goal)
            if rewards[k] >= tau if hard else u[k] < min(1.0, exp((rewards[k] - tau) / beta)):
                return k
        return rewards.index(max(rewards)) if (attempt + 1) * n >= tries else None

    blocks = Blocks(tokens=64, entropy=3.4, least=4)
    return search(lm, dialogue, n, blocks, SAMPLED, choose, redraws=tries > 1).ids


CASES = [(n, tries, goal, accept) for n, tries, goal in ((1, 4, 0.4), (2, 6, 0.3), (3, 5, 2.0)) for accept in ACCEPT]
QUICK = {(1, 4, 0.4, "soft")}


@pytest.mark.parametrize(("n", "tries", "goal", "accept"), mostly_slow(CASES, QUICK.__contains__))
def test_segments_are_drawn_until_one_is_accepted(
    llama: LanguageModel, n: int, tries: int, goal: float, accept: str
) -> None:
    llama.end_ids = [2, *range(5, 259, 20)]
    steering = method(llama, parallel=n, tries=tries, reward_threshold=goal, entropy=3.4, beta=0.2, accept=accept)
    found = run(llama, steering)
    assert [r.ids for r in found] == [naive(llama, d, n, tries, goal, accept == "hard") for d in PROMPTS]
    assert found == run(llama, steering, batch_size=1)


def test_one_try_is_the_model(llama: LanguageModel) -> None:
    assert run(llama, method(llama, tries=1, entropy=3.4)) == generate(llama, PROMPTS, decoding=SAMPLED)


def test_what_is_always_accepted_is_the_model_as_well(llama: LanguageModel) -> None:
    """In law: the first candidate of each segment is kept."""
    found = run(llama, method(llama, reward_threshold=-1e9, entropy=3.4))
    assert {n for r in found for n in r.draws} == {1}


def test_no_entropy_ends_a_segment_is_rejection_sampling(llama: LanguageModel) -> None:
    found = run(llama, method(llama, reward_threshold=2.0, alpha=1.0, entropy=1e9, tries=7, parallel=7, accept="hard"))
    best = load("methods", "best_of_n")(n=7).fit(FitContext(lm=llama, examples=[], reward=REWARD))  # type: ignore[call-arg]
    assert found == run(llama, best), "none reaches 2, and the best is taken"


def test_the_threshold_is_a_standard_deviation_above_the_mean(llama: LanguageModel) -> None:
    context = FitContext(lm=llama, examples=tiny.examples()[:24], reward=REWARD, decoding=SAMPLED)
    part = load("methods", "cards")().fit(context).decode
    rewards = [r.reward for r in context.rollouts()]
    assert part.target == pytest.approx(mean(rewards) + torch.tensor(rewards).std(correction=0).item(), rel=1e-5)  # type: ignore[union-attr]


def test_the_estimate_of_the_kl_is_right_on_average(llama: LanguageModel) -> None:
    """Tries until one of probability P is accepted: the sum of 1 / j below their number is -log P on average."""
    part = method(llama, reward_threshold=0.0).decode
    assert part is not None
    generator = torch.Generator().manual_seed(0)
    for p in (0.9, 0.5, 0.2):
        tries = torch.empty(4000).geometric_(p, generator=generator).int().tolist()
        assert mean(part.choice_kl([n]) or 0.0 for n in tries) == pytest.approx(-log(p), abs=0.06)
    assert part.choice_kl([1, 3, 1]) == pytest.approx(1.5)
    assert part.kl_is == "estimate"


@pytest.mark.parametrize("fields", [{"parallel": 0}, {"tries": 0}, {"beta": 0.0}, {"alpha": 1.5}])
def test_settings_out_of_range_are_refused(llama: LanguageModel, fields: dict[str, Any]) -> None:
    with pytest.raises(SteerbenchError, match=rf"^Cards: {next(iter(fields))} must be "):
        method(llama, reward_threshold=0.0, **fields)
