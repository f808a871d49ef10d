"""Best of N: the maximum of N independent draws, its bounds, and what it costs."""

from collections.abc import Sequence
from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from naive_search import drawn, is_finished, numbers
from scipy.stats import chisquare

from steerbench import Decoding, FitContext, LanguageModel, Reward, SteerbenchError, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import Dialogue, user
from steerbench.edits import Blocks, Candidate, DecodePart
from steerbench.engine.guidance import Given, Passes
from steerbench.learn import Response
from steerbench.plugins.spec import build, parse
from steerbench.seeds import generator_for

PROMPTS = [user("How do I bake a cake?"), user("Hi"), user("Why is the sky blue?")]
SAMPLED = Decoding(max_new_tokens=6, temperature=1.0)


def best_of(n: int) -> Steering:
    (steerer,) = build(parse(f"best_of_n:n={n}")[0])
    steering: Steering = steerer.fit(FitContext(lm=tiny.language_model(), examples=[], reward=tiny.VowelReward()))
    return steering


def scores(texts: Sequence[str]) -> list[float]:
    return [float(x) for x in tiny.VowelReward().score([()] * len(texts), texts)]


class Pick(DecodePart):
    """Keeps one candidate by its number, so that a test sees all of them."""

    def __init__(self, candidates: int, number: int) -> None:
        self.candidates, self.number = candidates, number

    def choose(self, dialogue: Dialogue, candidates: Sequence[str], reward: Reward) -> int:
        return self.number


def candidates(lm: LanguageModel, n: int, sample: int = 0) -> list[list[str]]:
    """Return the texts of each candidate, one list per number."""
    picks = [Steering(decode=Pick(n, k)) for k in range(n)]
    drawn = [generate(lm, PROMPTS, pick, SAMPLED, sample=sample, reward=tiny.VowelReward()) for pick in picks]
    return [[r.text for r in responses] for responses in drawn]


@pytest.mark.parametrize("sample", [0, 1])
def test_it_is_the_best_of_independent_draws(llama: LanguageModel, sample: int) -> None:
    draws = candidates(llama, 4, sample)
    chosen = generate(llama, PROMPTS, best_of(4), SAMPLED, sample=sample, reward=tiny.VowelReward())
    for texts, response in zip(zip(*draws, strict=True), chosen, strict=True):
        assert response.text == texts[int(np.argmax(scores(texts)))]
    assert len({text for row in draws for text in row}) > 6


def test_no_candidate_is_a_response_of_the_model_itself(llama: LanguageModel) -> None:
    """Against one of its own candidates it could not lose."""
    plain = [[r.text for r in generate(llama, PROMPTS, decoding=SAMPLED, sample=k)] for k in range(3)]
    drawn = [row for sample in range(2) for row in candidates(llama, 3, sample)]
    for position in range(len(PROMPTS)):
        assert len({row[position] for row in plain + drawn}) == 9


def test_one_is_the_model_itself_even_when_greedy(llama: LanguageModel) -> None:
    for decoding in (SAMPLED, Decoding(max_new_tokens=6)):
        alone = generate(llama, PROMPTS, decoding=decoding)
        assert generate(llama, PROMPTS, best_of(1), decoding, reward=tiny.VowelReward()) == alone


def test_greedy_candidates_are_refused(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match="greedy candidates are all alike"):
        generate(llama, PROMPTS, best_of(2), Decoding(max_new_tokens=2), reward=tiny.VowelReward())


@pytest.mark.parametrize("n", [0, 65, -1])
def test_a_number_out_of_range_is_refused(n: int) -> None:
    with pytest.raises(SteerbenchError, match=f"n must be a whole number from 1 to 64, not '{n}'"):
        best_of(n)


class Constant(Reward):
    name, revision = "constant", "1"

    def score(self, dialogues: Any, responses: Sequence[str], progress: Any = None) -> torch.Tensor:
        return torch.zeros(len(responses))


def test_of_equal_rewards_the_first_is_kept(llama: LanguageModel) -> None:
    chosen = generate(llama, PROMPTS, best_of(3), SAMPLED, reward=Constant())
    assert [r.text for r in chosen] == candidates(llama, 3)[0]


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_the_kl_is_below_its_bound_and_the_win_rate_is_the_closed_form(n: int) -> None:
    """On 50 equally likely responses of different reward, where the distribution of the best is known exactly."""
    decode = best_of(n).decode
    assert decode is not None
    ranks = np.arange(1, 51) / 50
    p = ranks**n - (ranks - 1 / 50) ** n
    exact = float(sum(p * np.log(p * 50)))
    bound = log(n) - (n - 1) / n
    assert decode.sequence_kl == pytest.approx(bound)
    assert exact <= bound + 1e-9
    if n <= 8:
        assert exact == pytest.approx(bound, abs=0.05)
    below = ranks - 1 / 50
    win = float(sum(p * (below + 0.5 / 50)))  # a tie is one half
    assert win == pytest.approx(n / (n + 1), abs=0.02)


def test_measured_wins_over_one_draw_follow_the_closed_form(llama: LanguageModel) -> None:
    prompts = [user(f"Question {i}?") for i in range(150)]
    chosen = scores([r.text for r in generate(llama, prompts, best_of(3), SAMPLED, reward=tiny.VowelReward())])
    other = scores([r.text for r in generate(llama, prompts, decoding=SAMPLED)])
    wins = np.mean([(a > b) + 0.5 * (a == b) for a, b in zip(chosen, other, strict=True)])
    assert wins <= 3 / 4 + 0.08, "the bound, and three standard errors"
    assert wins > 0.6


# Soft choice and early rejection


def method(**fields: Any) -> Steering:
    return load("methods", "best_of_n")(**fields).fit(
        FitContext(lm=tiny.language_model(), examples=[], reward=tiny.VowelReward())
    )


def test_a_soft_choice_follows_its_odds(llama: LanguageModel) -> None:
    """One prompt many times over, each with a draw of its own."""
    decode = method(n=3, beta=0.4).decode
    assert decode is not None
    row = [Candidate(Response(text, (5,), "end"), True) for text in ("aab", "abb", "bbb")]
    batch = llama.left_padded([llama.tokens(PROMPTS[0])])
    context = Given(PROMPTS[:1], tiny.VowelReward()).context(
        decode, llama, batch, Passes(llama, [], batch.input_ids.shape[1])
    )
    counts = np.zeros(3)
    for i in range(600):
        ((taken,),) = decode.select(replace(context, generators=[generator_for(i)]), [row])
        counts[taken] += 1
    odds = np.exp(np.array([2, 1, 0]) / 3 / 0.4)
    assert chisquare(counts, odds / odds.sum() * 600).pvalue > 1e-3


class NoTies(Reward):
    """Prefers a text for no reason."""

    name, revision = "no ties", "1"

    def score(self, dialogues: Any, responses: Sequence[str], progress: Any = None) -> torch.Tensor:
        return torch.tensor([float(sum(map(ord, text)) % 9973) for text in responses])


def test_a_soft_choice_at_its_ends(llama: LanguageModel) -> None:
    """Beta to 0 is the best; any beta takes one of the candidates, by the seed and not by the batch."""
    reward = NoTies()
    best = generate(llama, PROMPTS, method(n=4), SAMPLED, reward=reward)
    assert generate(llama, PROMPTS, method(n=4, beta=1e-6), SAMPLED, reward=reward) == best
    among = candidates(llama, 4)
    soft = [
        generate(llama, PROMPTS, method(n=4, beta=1e5), SAMPLED, seed=0, reward=reward, batch_size=b) for b in (1, 8)
    ]
    assert soft[0] == soft[1] != best
    assert all(r.text in texts for r, texts in zip(soft[0], zip(*among, strict=True), strict=True))


def naive_rejection(lm: LanguageModel, n: int, every: int, prompt: Dialogue) -> str:
    """Draw n responses whole, and then give up halves by what was there of them after every so many tokens."""
    tokens = lm.tokens(prompt).prompt
    drawn_whole = [
        drawn(lm, tokens, [], Blocks(), SAMPLED, numbers(prompt, SAMPLED, "candidate", 0, k)).ids for k in range(n)
    ]
    left = list(range(n))
    for length in (*range(every, SAMPLED.max_new_tokens, every), SAMPLED.max_new_tokens):
        seen = {k: lm.cut(drawn_whole[k][:length]).text for k in left}
        liked = dict(zip(left, scores([seen[k] for k in left]), strict=True))
        left.sort(key=lambda k: -liked[k])
        if not all(is_finished(lm, drawn_whole[k][:length], SAMPLED) for k in left):
            left = left[: (len(left) + 1) // 2]
        if all(is_finished(lm, drawn_whole[k][:length], SAMPLED) for k in left):
            break
    return lm.cut(drawn_whole[left[0]]).text


@pytest.mark.parametrize(("n", "every"), [(8, 2), (5, 1), (4, 3)])
def test_early_rejection_gives_up_the_worse_half(llama: LanguageModel, n: int, every: int) -> None:
    llama.end_ids = [2, *range(5, 259, 12)]
    found = generate(llama, PROMPTS, method(n=n, reject_every=every), SAMPLED, reward=tiny.VowelReward())
    assert [r.text for r in found] == [naive_rejection(llama, n, every, p) for p in PROMPTS]
    assert [r.draws for r in found] == [(n,)] * len(PROMPTS)


def test_early_rejection_saves_passes_of_rows(llama: LanguageModel) -> None:
    rows: list[int] = []
    llama.model.register_forward_pre_hook(lambda m, a, k: rows.append(len(k["input_ids"])), with_kwargs=True)
    generate(llama, PROMPTS, method(n=8, reject_every=2), SAMPLED, reward=tiny.VowelReward())
    assert rows == [3, 24, 24, 12, 12, 6]


@pytest.mark.parametrize("fields", [{"beta": -1.0}, {"reject_every": -1}, {"beta": float("inf")}])
def test_settings_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SteerbenchError, match=r"must be a (whole|finite) number of 0 or more, not"):
        method(**fields)
