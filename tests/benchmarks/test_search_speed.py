"""What choices among candidates add to decoding on the testbed, in turns with the unsteered model: `make bench`.

`-k batch` for one of them; `ratio` is in `extra_info`, the median over rounds of the time beside that of the unsteered
model within a round. Every row makes 48 tokens, and the guide, the testbed's own, is asked.
"""

import time
from statistics import median
from typing import Any

import pytest
import torch

from steerbench import FitContext, LanguageModel, Steering
from steerbench.data import Dialogue, user
from steerbench.engine.generate import generate_fixed
from steerbench.models.reward import RewardModel
from steerbench.plugins.spec import build, parse
from steerbench.testbed import Testbed, named

NEW_TOKENS, ROUNDS, BATCH = 48, 5, 8
METHODS = [
    "best_of_n:n=16",
    "best_of_n:n=16:reject_every=12",
    "blockwise_decoding:candidates=4:block=16:scorer=guide",
    "inf_align:n=8",
]
PROMPTS: list[Dialogue] = [user(f"How do I {verb} bread, and what do I need for it?") for verb in (
    "bake", "buy", "keep", "slice", "sell", "paint", "freeze", "toast"
)]  # fmt: skip


def of_the_testbed() -> tuple[LanguageModel, RewardModel]:
    home = named("testbed")
    assert isinstance(home, Testbed)
    return LanguageModel.load(home.part("lm")), RewardModel.load(home.part("reward"))


@pytest.mark.parametrize("name", METHODS)
def test_searching_beside_unsteered(benchmark: Any, name: str) -> None:
    benchmark.group = f"{NEW_TOKENS} tokens of the testbed, batch {BATCH}"
    torch.set_num_threads(2)
    lm, reward = of_the_testbed()
    (method,) = build(parse(name)[0])
    arms = (Steering(), method.fit(FitContext(lm=lm, examples=[], reward=reward)))
    new = NEW_TOKENS if benchmark.enabled else 2

    def seconds(arm: int) -> float:
        start = time.perf_counter()
        generate_fixed(lm, PROMPTS[:BATCH], arms[arm], new, reward)
        return time.perf_counter() - start

    def in_turn(i: int) -> float:
        times = {arm: seconds(arm) for arm in ((0, 1) if i % 2 else (1, 0))}
        return times[1] / times[0]

    ratios = [in_turn(i) for i in range(-1, ROUNDS if benchmark.enabled else 0)]
    benchmark.extra_info["ratio"] = median(ratios[1:] or ratios)
    print(f"\n{name}: {benchmark.extra_info['ratio']:.2f} times the unsteered model")
    benchmark.pedantic(seconds, args=(1,), rounds=1)
    torch.set_num_threads(1)
