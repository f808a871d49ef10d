"""DeAL, against beam search written naively, and in its special cases."""

from math import isnan
from typing import Any

import pytest
from naive_search import drawn, is_finished, numbers
from thorough import mostly_slow

from steerbench import Decoding, FitContext, LanguageModel, SteerbenchError, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import Dialogue, user
from steerbench.edits import Blocks
from steerbench.engine.effect import effect

PROMPTS = [user("How do I bake a cake?"), user("Hi"), user("Why is the sky blue?")]
GREEDY = Decoding(max_new_tokens=6)
REWARD = tiny.VowelReward()


def method(lm: LanguageModel, **fields: Any) -> Steering:
    return load("methods", "deal")(**fields).fit(FitContext(lm=lm, examples=[], reward=REWARD, decoding=GREEDY))


def run(lm: LanguageModel, steering: Steering, decoding: Decoding = GREEDY, **settings: Any) -> list[Any]:
    return generate(lm, PROMPTS, steering, decoding, reward=REWARD, **settings)


def naive(lm: LanguageModel, dialogue: Dialogue, beams: int, branches: int, blocks: Blocks, weight: float) -> Any:
    """Keep the best beams; those that have ended keep what they were judged by."""
    prompt, u = lm.tokens(dialogue).prompt, numbers(dialogue, GREEDY, "no")
    kept: list[tuple[list[int], float, float]] = [([], 0.0, 0.0)]
    while not all(is_finished(lm, ids, GREEDY) for ids, _, _ in kept):
        new = []
        for ids, log_p, score in kept:
            if is_finished(lm, ids, GREEDY):
                new.append((ids, log_p, score))
                continue
            for rank in range(beams * branches if ids == [] else branches):
                text = drawn(lm, prompt, ids, blocks, GREEDY, u, rank=rank if beams * branches > 1 else None)
                total = log_p + text.log_prob
                reward = float(REWARD.score([dialogue], [lm.cut(text.ids).text]))
                new.append((text.ids[: text.kept], total, total + weight * reward))
        kept = sorted(new, key=lambda one: -one[2])[:beams]
    return lm.cut(kept[0][0]).ids


@pytest.mark.parametrize(
    ("beams", "branches", "blocks", "weight"),
    mostly_slow(
        [(2, 2, Blocks(tokens=1, lookahead=2), 4.0), (3, 2, Blocks(tokens=2), 4.0), (2, 3, Blocks(tokens=1), 0.0)],
        lambda case: case[2].lookahead,
    ),
)
def test_beams_are_judged_by_likelihood_and_lookahead(
    llama: LanguageModel, beams: int, branches: int, blocks: Blocks, weight: float
) -> None:
    llama.end_ids = [2, *range(5, 259, 12)]
    settings = {"block": blocks.tokens, "lookahead": blocks.lookahead, "weight": weight}
    steering = method(llama, beams=beams, branches=branches, **settings)
    found = run(llama, steering)
    assert [r.ids for r in found] == [naive(llama, d, beams, branches, blocks, weight) for d in PROMPTS]
    assert found == run(llama, steering, batch_size=1, use_cache=False)


def test_without_reward_and_lookahead_it_is_beam_search(llama: LanguageModel) -> None:
    """That of transformers, with as many branches as it looks at, twice the beams, from end to end."""
    llama.end_ids = []
    llama.model.generation_config.eos_token_id = None
    found = run(llama, method(llama, beams=4, branches=8, block=1, lookahead=0, weight=0.0))
    for dialogue, response in zip(PROMPTS, found, strict=True):
        batch = llama.left_padded([llama.tokens(dialogue)])
        ids = llama.model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            num_beams=4,
            max_new_tokens=6,
            do_sample=False,
        )
        assert response.ids == tuple(ids[0, batch.input_ids.shape[1] :].tolist())


def test_one_beam_without_branches_is_the_model(llama: LanguageModel) -> None:
    for decoding in (GREEDY, Decoding(max_new_tokens=6, temperature=1.0)):
        alone = generate(llama, PROMPTS, decoding=decoding)
        assert run(llama, method(llama, beams=1, branches=1, block=2), decoding) == alone


def test_reward_finds_reward(llama: LanguageModel) -> None:
    rewards = [
        float(REWARD.score(PROMPTS, [r.text for r in run(llama, method(llama, weight=w, block=1, lookahead=0))]).mean())
        for w in (0.0, 20.0)
    ]
    assert rewards[1] > rewards[0]


def test_its_kl_is_not_known(llama: LanguageModel) -> None:
    steering = method(llama, beams=2, branches=2, block=2)
    decoding = Decoding(max_new_tokens=6, temperature=1.0)
    found = run(llama, steering, decoding)
    assert all(isnan(kl) for kl in effect(llama, PROMPTS, found, steering).kl)


@pytest.mark.parametrize("fields", [{"beams": 0}, {"branches": 0}, {"block": 0}, {"lookahead": -1}])
def test_settings_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SteerbenchError, match=r"must be a whole number (from 1 to 64|of [01] or more), not"):
        load("methods", "deal")(**fields)


def test_more_rows_than_fit_a_batch_are_refused_before_a_model_is_there() -> None:
    cls: Any = load("methods", "deal")
    with pytest.raises(SteerbenchError, match="deal: 13 beams with 5 branches each are more than 64 rows"):
        cls(beams=13)
    assert cls(beams=16, branches=4).beams == 16


@pytest.mark.parametrize("given", [(0, 5, 8, 10, 1.0), (13, 5, 8, 10, 1.0), (3, 5, 8, 10, float("nan"))])
def test_beams_of_a_file_are_checked_as_well(llama: LanguageModel, given: tuple[int, int, int, int, float]) -> None:
    cls: Any = type(method(llama).decode)
    with pytest.raises(SteerbenchError, match="deal: beams="):
        cls(*given)
