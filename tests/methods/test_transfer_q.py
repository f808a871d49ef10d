"""Transfer Q*, against its formula computed one rollout at a time, and in its special cases."""

from typing import Any
from zlib import crc32

import pytest
import torch
from naive_search import Text, search
from thorough import mostly_slow
from torch import Tensor
from transformers import LogitsProcessor

from steerbench import Decoding, FitContext, LanguageModel, Reward, SteerbenchError, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import Dialogue, user
from steerbench.edits import Blocks, LogitsPart
from steerbench.seeds import generator_for

PROMPTS = [user("How do I bake a cake?"), user("Hi"), user("Why is the sky blue?")]
MANY = [user(f"Question {i}?") for i in range(20)]
SAMPLED = Decoding(max_new_tokens=6, temperature=1.0)
REWARD = tiny.VowelReward()


class Letters(LogitsPart):
    """Allows letters alone, so that other ids are another text."""

    def processor(self, lm: LanguageModel, prompt_ids: Tensor, mask: Tensor) -> LogitsProcessor:
        kept = torch.tensor(lm.tokenizer("abcdefghijklmnopqrstuvwxyz", add_special_tokens=False)["input_ids"])

        class Processor(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                return torch.full_like(scores, -torch.inf).index_copy(1, kept, scores[:, kept])

        return Processor()


class NoTies(Reward):
    """Prefers a text for no reason."""

    name, revision = "no ties", "1"

    def score(self, dialogues: Any, responses: Any, progress: Any = None) -> torch.Tensor:
        return torch.tensor([float(crc32(text.encode()) % 9973) for text in responses])


def method(lm: LanguageModel, name: str = "transfer_q", **fields: Any) -> Steering:
    return load("methods", name)(**fields).fit(FitContext(lm=lm, examples=[], reward=REWARD, decoding=SAMPLED))


def run(lm: LanguageModel, steering: Steering, **settings: Any) -> list[Any]:
    return generate(lm, PROMPTS, steering, SAMPLED, reward=REWARD, **settings)


def naive(lm: LanguageModel, dialogue: Dialogue, n: int, blocks: Blocks, weight: float) -> tuple[int, ...]:
    generator = generator_for(0, 0, "choice", dialogue)

    def choose(texts: list[Text], attempt: int) -> int:
        q = REWARD.score([dialogue] * n, [lm.cut(t.ids).text for t in texts]).double()
        odds = torch.exp(weight * (q - q.max()))
        return int(torch.multinomial(odds / odds.sum(), 1, generator=generator))

    return search(lm, dialogue, n, blocks, SAMPLED, choose).ids


@pytest.mark.parametrize(("block", "lookahead"), mostly_slow([(1, 3), (2, 0), (2, 9)], lambda case: case != (2, 9)))
def test_blocks_are_judged_by_what_follows(llama: LanguageModel, block: int, lookahead: int) -> None:
    llama.end_ids = [2, *range(5, 259, 12)]
    steering = method(llama, candidates=3, block=block, lookahead=lookahead, weight=6.0)
    found = run(llama, steering)
    assert [r.ids for r in found] == [
        naive(llama, d, 3, Blocks(tokens=block, lookahead=lookahead), 6.0) for d in PROMPTS
    ]
    assert found == run(llama, steering, batch_size=1, use_cache=False)


def test_one_candidate_is_the_model(llama: LanguageModel) -> None:
    assert run(llama, method(llama, candidates=1)) == generate(llama, PROMPTS, decoding=SAMPLED)


def test_without_lookahead_and_with_a_large_weight_it_is_blockwise_decoding_with_the_guide(
    llama: LanguageModel,
) -> None:
    blockwise = method(llama, "blockwise_decoding", candidates=4, block=2, scorer="guide")
    without = method(llama, candidates=4, block=2, lookahead=0, weight=1e6)
    letters = Steering(logits=(Letters(),))
    found = (generate(llama, PROMPTS, s + letters, SAMPLED, reward=NoTies()) for s in (without, blockwise))
    assert next(found) == next(found)


def test_a_block_as_long_as_the_response_is_soft_best_of_n(llama: LanguageModel) -> None:
    soft = method(llama, "best_of_n", n=4, beta=0.5)
    assert {r.draws for r in run(llama, method(llama, candidates=4, block=6, weight=2.0))} == {(4,)}
    rewards = [[], []]  # type: ignore[var-annotated]
    for i, steering in enumerate((soft, method(llama, candidates=4, block=6, weight=2.0))):
        found = generate(llama, MANY, steering, SAMPLED, reward=REWARD)
        rewards[i] = REWARD.score(MANY, [r.text for r in found]).tolist()
    assert rewards[0] == rewards[1]


@pytest.mark.parametrize("fields", [{"candidates": 0}, {"block": 0}, {"lookahead": -1}, {"weight": -1.0}])
def test_settings_out_of_range_are_refused(llama: LanguageModel, fields: dict[str, Any]) -> None:
    with pytest.raises(SteerbenchError, match=rf"^TransferQ: {next(iter(fields))} must be "):
        method(llama, **fields)
