"""Blockwise controlled decoding, against its formula computed one candidate at a time, and in its special cases."""

from math import log
from typing import Any

import pytest
import torch
from naive_search import Text, search

from steerbench import Decoding, FitContext, LanguageModel, SteerbenchError, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import Dialogue, user
from steerbench.edits import Ascent, Blocks, Site
from steerbench.engine.effect import effect
from steerbench.learn import Tokens, ValueFunction, activations

PROMPTS = [user("How do I bake a cake?"), user("Hi"), user("Why is the sky blue?")]
SAMPLED = Decoding(max_new_tokens=7, temperature=1.0)
REWARD = tiny.VowelReward()


def context(lm: LanguageModel) -> FitContext:
    return FitContext(lm=lm, examples=tiny.examples()[:24], reward=REWARD, decoding=SAMPLED)


def method(lm: LanguageModel, **fields: Any) -> Steering:
    return load("methods", "blockwise_decoding")(**{"epochs": 3, **fields}).fit(context(lm))


def run(lm: LanguageModel, steering: Steering, **settings: Any) -> list[Any]:
    return generate(lm, PROMPTS, steering, SAMPLED, reward=REWARD, **settings)


def often_ending(lm: LanguageModel) -> LanguageModel:
    lm.end_ids = [2, *range(5, 259, 12)]
    return lm


def by_value(lm: LanguageModel, dialogue: Dialogue, steering: Steering, n: int, block: int) -> tuple[int, ...]:
    part = steering.decode
    value = ValueFunction(tuple(part.weights), tuple(part.biases))  # type: ignore[union-attr]
    prompt = lm.tokens(dialogue).prompt

    def v(text: Text) -> float:
        """Read what the next token is drawn from; or if there is none, what the last one was drawn from."""
        over = text.ids[-1] in lm.end_ids or len(text.ids) == SAMPLED.max_new_tokens
        states = activations(lm, Site("final"), [Tokens(prompt, tuple(text.ids))], "all")[0]
        return float(value(states[-2 if over else -1]))

    def choose(texts: list[Text], attempt: int) -> int:
        values = [v(text) for text in texts]
        return values.index(max(values))

    return search(lm, dialogue, n, Blocks(tokens=block), SAMPLED, choose).ids


def by_guide(lm: LanguageModel, dialogue: Dialogue, n: int, block: int) -> tuple[int, ...]:
    def choose(texts: list[Text], attempt: int) -> int:
        return int(REWARD.score([dialogue] * n, [lm.cut(text.ids).text for text in texts]).argmax())

    return search(lm, dialogue, n, Blocks(tokens=block), SAMPLED, choose).ids


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_goes_on_from_the_best_block(family: str) -> None:
    lm = often_ending(tiny.language_model(family))
    steering = method(lm, candidates=3, block=2)
    assert [r.ids for r in run(lm, steering)] == [by_value(lm, d, steering, 3, 2) for d in PROMPTS]
    guided = method(lm, candidates=3, block=3, scorer="guide")
    assert [r.ids for r in run(lm, guided)] == [by_guide(lm, d, 3, 3) for d in PROMPTS]


def test_one_block_by_the_guide_is_best_of_n(llama: LanguageModel) -> None:
    best = load("methods", "best_of_n")(n=5).fit(context(llama))  # type: ignore[call-arg]
    assert run(llama, method(llama, candidates=5, block=7, scorer="guide")) == run(llama, best)


@pytest.mark.parametrize("scorer", ["value", "guide"])
def test_one_candidate_is_the_model(llama: LanguageModel, scorer: str) -> None:
    steering = method(llama, candidates=1, block=2, scorer=scorer)
    for decoding in (SAMPLED, Decoding(max_new_tokens=7)):
        alone = generate(llama, PROMPTS, decoding=decoding)
        assert generate(llama, PROMPTS, steering, decoding, reward=REWARD) == alone


def test_its_value_is_that_of_re_control(llama: LanguageModel) -> None:
    """Fitted once for both."""
    shared = context(llama)
    (placed,) = load("methods", "re_control")(epochs=3).fit(shared).edits  # type: ignore[call-arg]
    calls: list[int] = []
    llama.model.register_forward_pre_hook(lambda m, a: calls.append(1))
    part = load("methods", "blockwise_decoding")(epochs=3).fit(shared).decode  # type: ignore[call-arg]
    assert calls == []
    assert isinstance(placed.edit, Ascent)
    for a, b in zip(placed.edit.weights, part.weights, strict=True):  # type: ignore[union-attr]
        assert torch.equal(a, b)


def test_a_value_that_knows_the_reward_raises_it(llama: LanguageModel) -> None:
    """A planted one: the last token's share in the reward, read off a state that tells it."""
    prompts = [user(f"Question {i}?") for i in range(40)]
    steering = method(llama, candidates=8, block=1, scorer="guide")
    found = generate(llama, prompts, steering, SAMPLED, reward=REWARD)
    plain = generate(llama, prompts, decoding=SAMPLED)
    gained = REWARD.score(prompts, [r.text for r in found]) - REWARD.score(prompts, [r.text for r in plain])
    assert float(gained.mean()) > 5 * float(gained.std()) / 40**0.5


def test_its_kl_is_bounded_block_by_block(llama: LanguageModel) -> None:
    steering = method(often_ending(llama), candidates=3, block=2, scorer="guide")
    found = run(llama, steering)
    bound = log(3) - 2 / 3
    expected = [-(-len(r.ids) // 2) * bound / len(r.ids) for r in found]
    assert effect(llama, PROMPTS, found, steering).kl == pytest.approx(expected)


@pytest.mark.parametrize("fields", [{"candidates": 0}, {"candidates": 65}, {"block": 0}])
def test_settings_out_of_range_are_refused(llama: LanguageModel, fields: dict[str, int]) -> None:
    with pytest.raises(
        SteerbenchError, match=rf"{next(iter(fields))} must be a whole number (from 1 to 64|of 1 or more), not"
    ):
        method(llama, scorer="guide", **fields)
