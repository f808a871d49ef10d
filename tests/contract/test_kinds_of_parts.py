"""Each kind of part passes the contract, by itself and composed with others."""

from itertools import combinations
from pathlib import Path

import pytest
from checked_methods import METHODS, QUICK, add, in_turn, named, problems
from method_corpus import GOOD
from thorough import mostly_slow

from steerbench.contract import tiny
from steerbench.contract.case import Case
from steerbench.steering.instructions import AskedPart
from steerbench.steering.parts import Edit, PlacedEdit, RankedEdit
from steerbench.steering.steering import Steering

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
"""Kind of part -> a method that has it: by default these are composed."""


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


SEARCHES = {"best_of_n", "inf_align", *(QUICK[name] for name in ("blockwise_decoding", "cards", "transfer_q", "deal"))}
"""Choices among candidates, of which two cannot be composed."""
PAIRS = in_turn("+".join(pair) for pair in combinations(METHODS, 2) if not SEARCHES.issuperset(pair))


INSTRUCTIONS = {"static_prompt", "best_prompt", "meta_align", QUICK["prime_guard"], "urial"}
"""Methods that put texts of their own in front of a prompt."""


def represents_kinds(pair: tuple[str, str]) -> bool:
    """Say whether a pair runs by default: each kind with an edit, and a prompt that is asked twice."""
    names = {name.split(":")[0] for name in pair[0].split("+")}
    alone = "caa" in names or names == {"static_prompt", "classifier_free"}
    return names <= set(REPRESENTATIVES.values()) and alone


@pytest.mark.parametrize(("pair", "on"), mostly_slow(PAIRS, represents_kinds))
def test_every_pair_of_methods_composes(pair: str, on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if INSTRUCTIONS.issuperset(pair.split("+")):
        monkeypatch.setattr(tiny, "CONTEXT", 2 * tiny.CONTEXT)  # two texts, a token for each letter
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
