"""The contract suite: what must pass it, alone and composed."""

from itertools import combinations, product
from pathlib import Path

import pytest
from checked_methods import METHODS, QUICK, add, in_turn, named, problems
from method_corpus import GOOD
from thorough import mostly_slow

from steerbench.contract import tiny
from steerbench.contract.case import Case
from steerbench.contract.check import check_method
from steerbench.contract.invariants import INVARIANTS
from steerbench.errors import SteerbenchError
from steerbench.steering.instructions import AskedPart
from steerbench.steering.parts import Edit, PlacedEdit, RankedEdit
from steerbench.steering.steering import Steering

ALIKE = (
    ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"),  # rotated positions, gated feed-forward parts
    ("gpt2", "gpt_neo", "opt"),  # learned positions
    ("falcon", "gpt_neox"),  # attention and feed-forward part side by side
)
"""Families of one structure: by default each kind of part meets one of each."""
REPRESENTATIVES = {
    "prompt": "static_prompt",
    "logits": "classifier_free",
    "choice": "best_of_n",
    "edit": "caa",
    "edit with a state": "act_add",
    "contest of edits": "alignez",
    "edit behind a gate": "cast",
    "prompt that asks": "prime_guard",
}
"""Kind of part -> a method that has it: by default these are composed, each with each."""


def kinds(steering: Steering) -> set[str]:
    """Return the kinds of part that a steering has."""
    found = {"prompt that asks" if isinstance(part, AskedPart) else "prompt" for part in steering.prompt}
    found |= {"logits"} if steering.logits else set()
    found |= {"choice"} if steering.decode else set()
    return found | set(map(kind_of_edit, steering.edits))


def kind_of_edit(placed: PlacedEdit) -> str:
    if isinstance(placed.edit, RankedEdit):
        return "contest of edits"
    if placed.gate is not None:
        return "edit behind a gate"
    return "edit" if type(placed.edit).start is Edit.start else "edit with a state"


# What passes


SEARCHES = {"best_of_n", "inf_align", *(QUICK[name] for name in ("blockwise_decoding", "cards", "transfer_q", "deal"))}
"""Choices among candidates, of which two cannot be composed."""
SAMPLE = {*in_turn(METHODS), *(("caa", alike[0]) for alike in ALIKE)}
"""What runs by default: each method in one family, and the plainest edit in one family of each structure."""


@pytest.mark.parametrize(("name", "on"), mostly_slow(product(METHODS, tiny.FAMILIES), SAMPLE.__contains__))
def test_every_method_keeps_every_invariant(name: str, on: str) -> None:
    assert problems(named(name), on) == {}


def test_every_family_is_met_by_a_method() -> None:
    assert sorted(family for alike in ALIKE for family in alike) == sorted(tiny.FAMILIES)
    assert {on for _, on in SAMPLE} == set(tiny.FAMILIES)
    assert {name for name, _ in SAMPLE} == set(METHODS)


PAIRS = in_turn("+".join(pair) for pair in combinations(METHODS, 2) if not SEARCHES.issuperset(pair))


def represents_kinds(pair: tuple[str, str]) -> bool:
    """Say whether a pair runs by default: each kind with an edit, and a prompt that is asked twice."""
    names = {name.split(":")[0] for name in pair[0].split("+")}
    alone = "caa" in names or names == {"static_prompt", "classifier_free"}
    return names <= set(REPRESENTATIVES.values()) and alone


@pytest.mark.parametrize(("pair", "on"), mostly_slow(PAIRS, represents_kinds))
def test_every_pair_of_methods_composes(pair: str, on: str) -> None:
    assert problems(named(pair), on) == {}


def found_in(method: str) -> set[str]:
    """Return the kinds of part that a fitted method has."""
    return kinds(Case.fitted(named(QUICK.get(method, method)), "llama").steering)


@pytest.mark.parametrize(("kind", "method"), REPRESENTATIVES.items())
def test_a_kind_of_part_has_a_representative(kind: str, method: str) -> None:
    assert kind in found_in(method)


@pytest.mark.slow
def test_no_method_has_a_part_of_another_kind() -> None:
    assert set().union(*map(found_in, METHODS)) == REPRESENTATIVES.keys()


@pytest.mark.parametrize(("name", "on"), in_turn(GOOD))
def test_methods_of_every_kind_pass(tmp_path: Path, name: str, on: str) -> None:
    """Each part of a steering, state of one generation, and gradients at generation time."""
    assert problems(add(tmp_path, name, GOOD[name]), on) == {}


def test_hyperparameters_and_compositions_can_be_checked() -> None:
    results = check_method('caa:scope=all:strength=0.5+static_prompt:text="a, b"', ["gpt2"])
    assert [r.problem for r in results] == [None] * len(INVARIANTS)
    assert {r.family for r in results} == {"gpt2"}


def test_only_one_method_at_a_time() -> None:
    with pytest.raises(SteerbenchError, match="'caa,unsteered' are 2 methods; check one at a time"):
        check_method("caa,unsteered", ["llama"])
