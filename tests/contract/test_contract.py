"""The contract suite: what every method must pass."""

from itertools import product

import pytest
from checked_methods import METHODS, in_turn, named, problems
from thorough import mostly_slow

from steerbench.contract import tiny
from steerbench.contract.check import check_method
from steerbench.contract.invariants import INVARIANTS
from steerbench.errors import SteerbenchError

ALIKE = (
    ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"),  # rotated positions, gated feed-forward parts
    ("gpt2", "gpt_neo", "opt"),  # learned positions
    ("falcon", "gpt_neox"),  # attention and feed-forward part side by side
)
"""Families of one structure."""
SAMPLE = {*in_turn(METHODS), *(("caa", alike[0]) for alike in ALIKE)}
"""What runs by default: each method in one family, and the plainest edit in one family of each structure."""


@pytest.mark.parametrize(("name", "on"), mostly_slow(product(METHODS, tiny.FAMILIES), SAMPLE.__contains__))
def test_every_method_keeps_every_invariant(name: str, on: str) -> None:
    assert problems(named(name), on) == {}


def test_every_family_is_met_by_a_method() -> None:
    assert sorted(family for alike in ALIKE for family in alike) == sorted(tiny.FAMILIES)
    assert {on for _, on in SAMPLE} == set(tiny.FAMILIES)
    assert {name for name, _ in SAMPLE} == set(METHODS)


def test_hyperparameters_and_compositions_can_be_checked() -> None:
    results = check_method('caa:scope=all:strength=0.5+static_prompt:text="a, b"', ["gpt2"])
    assert [r.problem for r in results] == [None] * len(INVARIANTS)
    assert {r.family for r in results} == {"gpt2"}


def test_only_one_method_at_a_time() -> None:
    with pytest.raises(SteerbenchError, match="'caa,unsteered' are 2 methods; check one at a time"):
        check_method("caa,unsteered", ["llama"])
