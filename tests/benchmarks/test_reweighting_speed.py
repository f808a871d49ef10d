"""What re-weighting of tokens, and a choice among 16, add to decoding on the testbed: `make bench`.

Timed in turns with the unsteered model, and printed in the end as ratios within a round. Batch 8, two threads. What the
networks are does not change what they cost. About two minutes on two idle cores.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from side_by_side import Ratios

from steerbench import LanguageModel, Steering, load
from steerbench.data import user
from steerbench.edits import Reweighting
from steerbench.engine.floor import decode_floor
from steerbench.engine.generate import generate_fixed
from steerbench.engine.kept_reward import KeptReward
from steerbench.testbed import Testbed, named

pytestmark = pytest.mark.usefixtures("two_threads")

NEW_TOKENS, ROUNDS = 48, 7
PROMPTS = [user(f"How do I bake bread for {n} people, and what do I need?") for n in range(3, 11)]


def q_head(lm: LanguageModel) -> Reweighting:
    module = __import__(load("methods", "controlled_decoding").__module__, fromlist=["NextTokenValue"])
    width, size = lm.model.config.hidden_size, lm.model.config.vocab_size
    part: Reweighting = module.NextTokenValue(
        1e-3 * torch.randn(32, width), torch.zeros(32), torch.randn(32, size), 1.0
    )
    return part


def candidates(lm: LanguageModel) -> Reweighting:
    module = __import__(load("methods", "controlled_decoding").__module__, fromlist=["ValueAhead"])
    width = lm.model.config.hidden_size
    weights = [1e-3 * torch.randn(n, width) for n in (width, width, 1)]
    part: Reweighting = module.ValueAhead(weights, [torch.zeros(len(w)) for w in weights], 1.0, 4)
    return part


def fitted(name: str, **fields: Any) -> Reweighting:
    """Return the part of a method that learns nothing."""
    steering = load("methods", name)(**fields).fit(None)  # type: ignore[arg-type]
    part = steering.logits[0]
    assert isinstance(part, Reweighting)
    return part


def part_of_testbed(name: str) -> str:
    home = named("testbed")
    assert isinstance(home, Testbed)
    return home.part(name)


KINDS: dict[str, Callable[[LanguageModel], Reweighting | Steering]] = {
    "unsteered": lambda lm: Steering(),
    "a head that scores all tokens": q_head,
    "4 candidate states": candidates,
    "a second model of the same size": lambda lm: fitted("dexperts", expert=part_of_testbed("lm")),
    "twin rows": lambda lm: fitted("classifier_free"),
    "ARGS with 10 candidates": lambda lm: fitted("args"),
    "best of 16": lambda lm: load("methods", "best_of_n")(n=16).fit(None),  # type: ignore[arg-type, call-arg]
}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel.load(part_of_testbed("lm"))


@pytest.fixture(scope="module")
def reward() -> KeptReward:
    return KeptReward.load(part_of_testbed("reward"), batch_size=80)


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(run: Callable[[], None], base: Callable[[], None], i: int) -> tuple[float, float]:
    """Time both, in an order that changes from round to round."""
    if i % 2:
        return seconds(run), seconds(base)
    plain = seconds(base)
    return seconds(run), plain


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_beside_unsteered(
    benchmark: Any, lm: LanguageModel, reward: KeptReward, ratios: Ratios, kind: str
) -> None:
    benchmark.group = f"{NEW_TOKENS} tokens of the testbed, batch 8"
    torch.manual_seed(0)
    part = KINDS[kind](lm)
    steering = part if isinstance(part, Steering) else Steering(logits=(part,))
    tokens = NEW_TOKENS if benchmark.enabled else 2  # the default suite only asks whether it runs
    run, base = (lambda s=s: generate_fixed(lm, PROMPTS, s, tokens, reward) for s in (steering, Steering()))
    pairs = [in_turn(run, base, i) for i in range(-1, ROUNDS if benchmark.enabled else 0)]
    found = [steered / plain for steered, plain in pairs]
    ratios.note(benchmark, kind, found[1:] or found, decode_floor(lm, steering, PROMPTS, reward, tokens))
    benchmark.pedantic(run, rounds=1)
