"""What constant vectors add to decoding on the testbed, in turns with the unsteered model: `make bench`.

The ratio is in `extra_info`, the median over rounds of steered beside unsteered within a round, with its 95 % interval
by bootstrap; `unsteered` is the unsteered model beside itself, which is the noise. Directions are random: what they are
does not change what they cost.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from steerbench import LanguageModel, Steering
from steerbench.data import user
from steerbench.edits import Add, ConditionGate, PlacedEdit, Site
from steerbench.engine.generate import generate_fixed
from steerbench.learn import activations
from steerbench.testbed import Testbed, named

NEW_TOKENS, ROUNDS = 64, 60
QUESTIONS = ("How do I bake bread?", *(f"How do I {what}?" for what in ("grow tomatoes", "make soup", "fix a bike")))
QUESTIONS += tuple(f"Can you help me {what}?" for what in ("choose a good book", "paint a wall", "save money", "sleep"))
PLACES: dict[str, list[tuple[str, int, str]]] = {
    "unsteered": [],
    "caa": [("resid_post", 2, "response")],
    "repe, a band of five layers": [("resid_post", layer, "all") for layer in range(5)],
    "iti, heads in every layer": [("z", layer, "response") for layer in range(5)],
    "iti, heads in every layer, folded": [("z", layer, "all") for layer in range(5)],
    "attn_out of every layer, folded": [("attn_out", layer, "all") for layer in range(5)],
}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    home = named("testbed")
    assert isinstance(home, Testbed)
    return LanguageModel.load(home.part("lm"))


def steering(lm: LanguageModel, name: str) -> Steering:
    width, generator = lm.model.config.hidden_size, torch.Generator().manual_seed(0)
    edits = [
        PlacedEdit(Site(site, layer), Add(1e-3 * torch.randn(width, generator=generator)), scope)  # type: ignore[arg-type]
        for site, layer, scope in PLACES[name]
    ]
    return Steering(edits=tuple(edits))


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rounds_of(
    lm: LanguageModel, arms: tuple[Steering, Steering], questions: Sequence[str], rounds: int, new: int
) -> Any:
    """Return the time of the second arm beside that of the first in each round, in turns; two rounds go before."""

    def decode(arm: int) -> None:
        generate_fixed(lm, [user(question) for question in questions], arms[arm], new)

    def in_turn(i: int) -> float:
        order = (0, 1) if i % 2 else (1, 0)
        times = {arm: seconds(lambda arm=arm: decode(arm)) for arm in order}  # type: ignore[misc]
        return times[1] / times[0]

    return [in_turn(i) for i in range(-2, rounds)][2:], decode


def note(benchmark: Any, name: str, ratios: Sequence[float]) -> None:
    """Keep the median and its interval."""
    benchmark.extra_info["ratio"] = median(ratios)
    if len(ratios) > 1:
        found = bootstrap((np.array(ratios),), np.median, n_resamples=10_000, rng=np.random.default_rng(0))
        low, high = found.confidence_interval
        benchmark.extra_info["interval"] = [float(low), float(high)]
        print(f"\n{name}: {median(ratios):.4f} ({low:.4f} to {high:.4f})")


@pytest.mark.parametrize("name", PLACES)
def test_decoding_beside_unsteered(benchmark: Any, lm: LanguageModel, name: str) -> None:
    benchmark.group = f"{NEW_TOKENS} tokens of the testbed, batch 1"
    torch.set_num_threads(1)
    rounds, new = (ROUNDS, NEW_TOKENS) if benchmark.enabled else (1, 2)
    ratios, decode = rounds_of(lm, (Steering(), steering(lm, name)), QUESTIONS[:1], rounds, new)
    note(benchmark, name, ratios)
    benchmark.pedantic(decode, args=(1,), rounds=5 if benchmark.enabled else 1)


@pytest.mark.parametrize("opened", ["no row", "half of the rows", "every row"])
def test_gates_beside_unsteered(benchmark: Any, lm: LanguageModel, opened: str) -> None:
    """A gate is asked once for each prompt, in a pass of its own, and decoding selects rows where they differ."""
    benchmark.group = f"{NEW_TOKENS} tokens of the testbed, batch {len(QUESTIONS)}, one gate"
    torch.set_num_threads(1)
    rounds, new = (ROUNDS, NEW_TOKENS) if benchmark.enabled else (1, 2)
    (placed,) = steering(lm, "caa").edits
    gate = ConditionGate("resid_post.3", torch.ones(lm.model.config.hidden_size), 0.0, "cosine", pool="last_prompt")
    states = activations(lm, Site("resid_post", 3), [lm.tokens(user(q)) for q in QUESTIONS], "last_prompt")
    measured = gate.measured(torch.stack(states))
    gate.threshold = {"no row": 2.0, "half of the rows": float(measured.median()), "every row": -2.0}[opened]
    gated = Steering(edits=(replace(placed, gate=gate),))
    ratios, decode = rounds_of(lm, (Steering(), gated), QUESTIONS, rounds, new)
    note(benchmark, f"gate open to {opened}", ratios)
    benchmark.pedantic(decode, args=(1,), rounds=5 if benchmark.enabled else 1)
