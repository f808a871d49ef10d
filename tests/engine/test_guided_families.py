"""Searches and re-weighting on every family: neither the batch nor the cache of shared prefixes changes a token."""

from pathlib import Path
from typing import Any

import pytest
from thorough import mostly_slow

from steerbench import Decoding, FitContext, LanguageModel, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.learn import Response

TEXTS = ("Hi", "How do I bake a cake, and what for?", "x", "Why is it so?", "So", "And then what?", "Tell me.", "y")
PROMPTS = [user(text) for text in TEXTS]
DECODINGS = {"greedy": Decoding(max_new_tokens=6), "sampled": Decoding(max_new_tokens=6, temperature=1.0)}
REWARD = tiny.VowelReward()
METHODS: dict[str, dict[str, Any]] = {
    "best_of_n": {"n": 3},
    "best_of_n rejecting": {"n": 4, "reject_every": 2},
    "inf_align": {"n": 3},
    "blockwise_decoding": {},
    "cards": {"tries": 4, "parallel": 2, "entropy": 1.0},
    "deal": {"beams": 2, "branches": 2, "block": 2, "lookahead": 2},
    "transfer_q": {"candidates": 3, "lookahead": 2},
    "args": {"w": 40.0, "k": 4},
    "controlled_decoding": {"epochs": 1},
    "controlled_decoding q": {"head": "q", "rank": 4, "epochs": 1},
    "classifier_free": {},
    "dexperts": {"expert": "lm"},
    "nudging": {"guide": "lm"},
    "rtd": {},
    "genarm": {"rank": 2},
}
DRAWING = ("best_of_n", "best_of_n rejecting", "inf_align", "blockwise_decoding", "cards", "transfer_q")
"""Those whose candidates differ only where tokens are drawn."""
QUICK = ("best_of_n", "cards", "deal", "args", "rtd")
CASES = [(family, name) for family in sorted(tiny.FAMILIES) for name in METHODS]


def fitted(lm: LanguageModel, name: str, world: Path) -> Steering:
    fields = {k: str(world / v) if k in {"expert", "guide"} else v for k, v in METHODS[name].items()}
    context = FitContext(lm=lm, examples=tiny.examples()[:16], reward=REWARD, decoding=DECODINGS["sampled"])
    steering: Steering = load("methods", name.partition(" ")[0])(**fields).fit(context)
    return steering


@pytest.mark.parametrize(("family", "name"), mostly_slow(CASES, lambda case: case[0] == "gemma2" and case[1] in QUICK))
def test_neither_batch_nor_cache_changes_it(family: str, name: str, world: Path) -> None:
    lm = tiny.language_model(family)
    lm.end_ids = list(range(2, 259, 13))  # some rows end early
    steering = fitted(lm, name, world)
    for how, decoding in DECODINGS.items():
        if how == "greedy" and name in DRAWING:
            continue

        def run(**how: Any) -> list[Response]:
            return generate(lm, PROMPTS, steering, decoding, reward=REWARD, **how)  # noqa: B023 - called here

        together = run(batch_size=8)
        assert together == run(batch_size=1)
        assert together == run(batch_size=8, use_cache=False)
        if how == "sampled" and (family, name) != ("llama", "dexperts"):  # its expert is this very model
            assert together != generate(lm, PROMPTS, Steering(), decoding)
