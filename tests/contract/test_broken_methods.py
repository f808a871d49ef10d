"""What the contract suite must catch.

A suite that finds nothing proves nothing, so every invariant meets methods that are broken in just that way. Most of
them are mistakes that other steering libraries make, or made, without a word.
"""

from itertools import product
from pathlib import Path

import pytest
from checked_methods import QUICK, add, in_turn, named, problems
from method_corpus import BROKEN, COMPANIONS, RIGHT, bias, edit, home_of, method
from thorough import mostly_slow

from steerbench.contract import check as contract
from steerbench.contract import invariants, tiny
from steerbench.contract.case import Case
from steerbench.contract.check import check, holds_on_one_fit
from steerbench.contract.invariants import INVARIANTS, UP_TO_ROUNDING, batch_equals_single


def test_every_invariant_meets_methods_that_break_it() -> None:
    names = [name for cases in BROKEN.values() for name in cases]
    assert list(BROKEN) == [invariant.__name__ for invariant in INVARIANTS]
    assert [home_of(name)[0] for name in COMPANIONS] == list(BROKEN)
    assert len(names) == len(set(names))


ONE_OF_TWO_VIEWS = {"global_generator", "mean_of_positions"}
"""Broken for the fit, and in the cache."""
BROKEN_NAMES = [name for cases in BROKEN.values() for name in cases]
ONE_FAMILY_EACH = set(in_turn(BROKEN_NAMES))


@pytest.mark.parametrize(
    ("name", "on"), mostly_slow(product(BROKEN_NAMES, tiny.FAMILIES), ONE_FAMILY_EACH.__contains__)
)
def test_what_is_broken_is_caught(tmp_path: Path, name: str, on: str) -> None:
    """Twice, as the suite does it: on one fit together with all other invariants, and then by its own invariant."""
    caught_by, source = home_of(name)
    broken = add(tmp_path, name, source)
    assert not holds_on_one_fit(broken, on)
    assert check(broken, on, vars(invariants)[caught_by])


@pytest.mark.parametrize("name", mostly_slow(COMPANIONS, ONE_OF_TWO_VIEWS.__contains__))
def test_only_what_is_broken_is_named(tmp_path: Path, name: str) -> None:
    invariant, source = home_of(name)
    assert set(problems(add(tmp_path, name, source))) == {invariant} | COMPANIONS[name]


WEAK = (
    "first_row_only",
    "first_row_of_the_logits",
    "mean_of_the_batch",
    "start_reads_padding",
    "state_of_the_first_row",
)


@pytest.mark.parametrize(("name", "on"), mostly_slow(product(WEAK, tiny.FAMILIES), set(in_turn(WEAK)).__contains__))
def test_a_weak_edit_that_changes_no_token_is_caught_too(tmp_path: Path, name: str, on: str) -> None:
    """Tokens alone would show almost none of these: a hundredth of the vector rarely changes one."""
    weak = add(tmp_path, name, home_of(name)[1].replace("strength: float = 1.0", "strength: float = 0.01"))
    assert check(weak, on, batch_equals_single)


def test_a_fault_that_not_every_fit_shows_is_found(tmp_path: Path) -> None:
    """Rounding may be to blame for what one fit shows; a fault that another one shows, too, is a fault."""
    mixing = edit("return h + self.strength * h.mean(0, keepdim=True) if self.strength > 0 else h")
    source = mixing.replace("self.vector(context), self.strength", "self.vector(context), WHEN")
    assert source.count("WHEN") == 1
    for name, when, broken in (("often", "context.seed in (0, 2)", True), ("once", "context.seed == 0", False)):
        found = add(tmp_path, name, source.replace("WHEN", f"self.strength * float({when})"))
        assert (check(found, "llama", batch_equals_single) is not None) == broken


# One fit for all invariants

FIRST_USE = {
    "steering_leaves_no_trace": bias(
        processor="old, self.strength = self.strength, self.strength and 2.0\nreturn Bias(old)"
    ),
    "generation_is_reproducible": bias(
        processor="""
        strength = self.strength + (self.strength != 0 and not hasattr(self, "used"))
        self.used = True
        return Bias(strength)
        """
    ),
}
"""Invariant -> what breaks it where a steering is used for the first time, and never again."""


@pytest.mark.parametrize("invariant", FIRST_USE)
def test_no_invariant_uses_a_steering_up_for_the_next(tmp_path: Path, invariant: str) -> None:
    assert invariant in problems(add(tmp_path, "mine", FIRST_USE[invariant]))


@pytest.mark.parametrize(
    ("name", "on"),
    mostly_slow(
        in_turn(["caa", "static_prompt", QUICK["re_control"], "best_of_n", QUICK["alignez"]]),
        lambda case: case[0] in ("caa", QUICK["re_control"]),
    ),
)
def test_no_invariant_leaves_a_trace(name: str, on: str) -> None:
    case = Case.fitted(named(name), on)
    digest = case.steering.digest()
    for invariant in INVARIANTS:
        problem = invariant(case.untouched())
        assert problem is None or invariant in UP_TO_ROUNDING  # which one fit alone does not decide
        assert case.changed(case.before) is None, invariant.__name__
        assert case.steering.digest() == digest


def test_a_trace_that_no_invariant_sees_is_none_on_one_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is behind an invariant that damages the model proves nothing."""

    def damages(case: Case) -> None:
        case.lm.model.get_input_embeddings().weight.data[7] += 1

    monkeypatch.setattr(contract, "INVARIANTS", (damages,))
    assert not holds_on_one_fit(named("unsteered"), "llama")


def test_what_is_sound_is_fitted_once_for_all_that_need_no_fit_of_their_own(tmp_path: Path) -> None:
    counting = method("Mine.fits = getattr(Mine, 'fits', 0) + 1\n" + RIGHT)
    sound = add(tmp_path, "mine", counting)
    assert problems(sound) == {}
    # again with the same seed, with an eye on what is shared, switched off, in bfloat16
    assert vars(type(sound.steerers[0]))["fits"] == 1 + 4
