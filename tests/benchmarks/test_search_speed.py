"""What choices among candidates add to decoding on the testbed, in turns with the unsteered model: `make bench`.

The ratios are printed side by side in the end: of a whole generation, the choice included, beside that of the
unsteered model in the same round. Every row makes 48 tokens, and the guide, the testbed's own, is asked. About two
minutes on two idle cores.
"""

import time
from typing import Any

import pytest
from side_by_side import Ratios

from steerbench import FitContext, LanguageModel, Steering
from steerbench.data import Dialogue, user
from steerbench.engine.floor import decode_floor
from steerbench.engine.generate import generate_fixed
from steerbench.models.reward import RewardModel
from steerbench.plugins.spec import build, parse
from steerbench.testbed import Testbed, named

pytestmark = pytest.mark.usefixtures("two_threads")

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


@pytest.fixture(scope="module")
def testbed() -> tuple[LanguageModel, RewardModel]:
    return of_the_testbed()


def of_the_testbed() -> tuple[LanguageModel, RewardModel]:
    home = named("testbed")
    assert isinstance(home, Testbed)
    return LanguageModel.load(home.part("lm")), RewardModel.load(home.part("reward"))


@pytest.mark.parametrize("name", METHODS)
def test_searching_beside_unsteered(
    benchmark: Any, testbed: tuple[LanguageModel, RewardModel], ratios: Ratios, name: str
) -> None:
    benchmark.group = f"{NEW_TOKENS} tokens of the testbed, batch {BATCH}"
    lm, reward = testbed
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

    found = [in_turn(i) for i in range(-1, ROUNDS if benchmark.enabled else 0)]
    ratios.note(benchmark, name, found[1:] or found, decode_floor(lm, arms[1], PROMPTS, reward, new))
    benchmark.pedantic(seconds, args=(1,), rounds=1)
