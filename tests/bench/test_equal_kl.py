"""Matching solves each strength for one KL, and sweeps measure every strength: the solver against known curves."""

from collections.abc import Callable
from dataclasses import replace
from math import exp, inf
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from steerbench import Decoding, FitContext, Options, Protocol, Store, load, names, run
from steerbench.bench import tuning
from steerbench.bench.method import Knob, searched, spread_over, strength_of, sweep
from steerbench.bench.tuning import match
from steerbench.bench.units import plan
from steerbench.contract import tiny
from steerbench.errors import SteerbenchError
from steerbench.steering.steering import Steering

Curve = Callable[[float], float]


class Scores:
    """Stands for the validation prompts: KL is a function of the strength alone."""

    objective, examples = "reward", ()

    def __init__(self, kl: Curve) -> None:
        self.kl = kl
        self.asked: list[float] = []

    def scores(self, steering: Steering, context: FitContext) -> dict[str, float]:
        return {"score": 0.0, "kl": 0.0}


@pytest.fixture
def context() -> FitContext:
    lm = tiny.language_model()
    return FitContext(
        lm=lm, examples=tiny.examples()[:3], reward=tiny.VowelReward(), decoding=Decoding(max_new_tokens=3)
    )


def solved(kl: Curve, target: float, context: FitContext, monkeypatch: pytest.MonkeyPatch, budget: int = 8) -> Any:
    """Match `caa` by a curve and return the report."""

    def attempt(one: Any, *_: Any) -> dict[str, Any]:
        value = kl(one.steerers[0].relative_norm)
        return {"kl": value} if value < inf else {"error": "NaN"}

    monkeypatch.setattr(tuning, "attempt", attempt)
    scores: Any = Scores(kl)
    return match(plan("caa", tuned=True)[-1], context, scores, target, budget)


@pytest.mark.parametrize("target", [1e-3, 0.05, 0.2, 1.0, 3.0])
@pytest.mark.parametrize(
    "kl",
    [
        lambda s: 2 * s**2,
        lambda s: 0.01 * s,
        lambda s: s**6,
        lambda s: exp(6 * s) - 1,
        lambda s: max(0.0, s - 0.2) ** 2,
    ],
    ids=["square", "slow", "steep", "exponential", "nothing at first"],
)
def test_a_smooth_curve_is_solved_within_the_budget(
    kl: Curve, target: float, context: FitContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, report = solved(kl, target, context, monkeypatch, budget=16)
    assert report["matched"]
    assert kl(method.steerers[0].relative_norm) == pytest.approx(target, rel=tuning.KL_TOLERANCE)
    assert report["chosen"] == {"relative_norm": method.steerers[0].relative_norm}
    assert report["target"] == target
    assert len(report["trials"]) <= 16


def test_the_square_of_a_small_edit_takes_two_trials(context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    _, report = solved(lambda s: s**2, 0.2, context, monkeypatch)
    assert len(report["trials"]) == 2


@pytest.mark.parametrize("power", [0.7, 1.0, 1.5, 3.0])
def test_any_power_takes_three_trials(power: float, context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one tells which power it is."""
    _, report = solved(lambda s: 0.1 * s**power, 0.2, context, monkeypatch)
    assert report["matched"]
    assert len(report["trials"]) <= (4 if power < 1 else 3)  # one step is four times at most


def test_the_power_is_that_beside_the_end() -> None:
    """KL grows with the square first and with the sixth power then."""
    tried = {0.1: 0.001, 0.2: 0.004, 0.4: 0.256}
    assert tuning._power(tried, 0.4) == pytest.approx(6)
    assert tuning._power(tried, 0.1) == pytest.approx(2)
    assert tuning._power({0.1: 0.0, 0.2: 0.01}, 0.2) == 2.0, "nothing is known of a KL of 0"


def test_what_cannot_be_reached_is_said_and_the_nearest_kept(
    context: FitContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, report = solved(lambda s: min(s**2, 0.05), 0.2, context, monkeypatch)
    assert not report["matched"]
    assert {t["kl"] for t in report["trials"]} == {0.05}
    strengths = [t["hyperparameters"]["relative_norm"] for t in report["trials"]]
    assert len(strengths) == 4, "what is flat over four times the strength, and 64 times as far, stays so"
    assert strengths[3] == pytest.approx(64 * strengths[2])


@pytest.mark.parametrize(
    ("kl", "target"),
    [
        (lambda s: min(8.0, 50 * s), 0.05),
        (lambda s: 0.0 if s < 4 else 0.001 * s**2, 0.1),
        (lambda s: max(0.02, 0.01 * s**2) if s > 0.05 else 0.0, 0.1),
    ],
    ids=["all is wrecked at first", "nothing at first", "a plateau below"],
)
def test_a_plateau_is_left(kl: Curve, target: float, context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    _, report = solved(kl, target, context, monkeypatch, budget=12)
    assert report["matched"], report["trials"]


def test_a_wide_jump_between_equal_strengths_is_not_matched(
    context: FitContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, report = solved(lambda s: s**2 * (0.02 if s < 0.4 else 10), 0.1, context, monkeypatch, budget=12)
    assert not report["matched"]


def test_a_wreck_beyond_an_equal_strength_is_no_match(context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    _, report = solved(lambda s: 0.001 * s**2 if s < 0.4 else inf, 0.1, context, monkeypatch, budget=14)
    assert not report["matched"]
    _, nothing = solved(lambda _: 0.0, 0.2, context, monkeypatch)
    assert not nothing["matched"]


def test_a_jump_between_equal_strengths_is_matched_and_ends_the_search(
    context: FitContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that falls the other way moves the KL of few prompts by more than the tolerance."""
    _, report = solved(lambda s: s**2 * (0.8 if s < 0.4 else 1.3), 0.16, context, monkeypatch, budget=20)
    assert report["matched"]
    assert len(report["trials"]) < 12
    assert report["chosen"]["relative_norm"] == pytest.approx(0.4, rel=0.01)


def test_no_strength_beyond_the_largest_is_tried(context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(one: Any, *_: Any) -> dict[str, Any]:
        return {"kl": 0.01 * one.steerers[0].strength ** 2}

    monkeypatch.setattr(tuning, "attempt", attempt)
    scores: Any = Scores(lambda s: s)
    method, report = match(plan("linear_act", tuned=True)[-1], context, scores, 0.05, 8)
    assert method.steerers[0].strength == 1.0  # type: ignore[attr-defined]
    assert not report["matched"]
    assert all(t["hyperparameters"]["strength"] <= 1 for t in report["trials"])
    assert len(report["trials"]) < 4


def test_a_strength_that_is_never_reached_is_not_tried(context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of `rtd` is below 1."""

    def attempt(one: Any, *_: Any) -> dict[str, Any]:
        return {"kl": 0.01 * one.steerers[0].share}

    monkeypatch.setattr(tuning, "attempt", attempt)
    scores: Any = Scores(lambda s: s)
    method, report = match(plan("rtd", tuned=True)[-1], context, scores, 0.05, 8)
    assert 0.99 < method.steerers[0].share < 1  # type: ignore[attr-defined]
    assert not report["matched"]


def test_a_strength_that_cannot_be_measured_is_too_strong(context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    _, report = solved(lambda s: s**2 if s < 0.1 else inf, 0.005, context, monkeypatch, budget=12)
    assert report["matched"]
    assert "error" in report["trials"][0]
    with pytest.raises(SteerbenchError, match="none of the 8 trials of caa could be measured"):
        solved(lambda _: inf, 0.2, context, monkeypatch)


def test_a_kl_that_nobody_knows_is_told_at_once(context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def attempt(one: Any, *_: Any) -> dict[str, Any]:
        asked.append(one)
        return {"score": 1.0, "length": 3.0}

    monkeypatch.setattr(tuning, "attempt", attempt)
    scores: Any = Scores(lambda s: s)
    with pytest.raises(SteerbenchError, match=r"none of the 1 trials of caa could be measured.*its KL is not known"):
        match(plan("caa", tuned=True)[-1], context, scores, 0.2, 8)
    assert len(asked) == 1


def test_a_strength_that_leaves_no_token_was_too_strong(context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(one: Any, *_: Any) -> dict[str, Any]:
        label, knob = strength_of(one)  # type: ignore[misc]  # caa has one
        strength = searched(one, {label: knob})[label]
        return (
            {"score": 1.0, "length": 0.0} if strength > 0.05 else {"score": 1.0, "length": 9.0, "kl": 80 * strength**2}
        )

    monkeypatch.setattr(tuning, "attempt", attempt)
    scores: Any = Scores(lambda s: s)
    found = match(plan("caa", tuned=True)[-1], context, scores, 0.1, 8)
    assert found.report["matched"]


def test_a_method_without_a_strength_comes_back_as_it_is(context: FitContext) -> None:
    method = plan("static_prompt", tuned=True)[-1]
    scores: Any = Scores(lambda s: s)
    assert match(method, context, scores, 0.2, 8) == (method, {})


def test_the_strength_of_a_composition_is_the_first_number_that_is_left() -> None:
    def strength(text: str) -> str | None:
        found = strength_of(plan(text, tuned=True)[-1])
        return found and found[0]

    assert strength("caa") == "relative_norm"
    assert strength("static_prompt+caa") == "caa.relative_norm"
    assert strength("caa:relative_norm=1+repe") == "repe.relative_norm"
    assert strength("best_of_n") is None
    assert strength("iti:relative_norm=0.1") is None, "a share of the heads is no strength"
    assert strength("re_control:relative_norm=0.1") is None, "nor is what V learns by"


def test_what_searches_fractions_that_are_no_strength_says_so() -> None:
    """More of these does not change more, or not the bound by draws that is known of the KL."""
    ungraded = {name for name in names("methods") if not load("methods", name).graded}
    assert ungraded == {"blockwise_decoding", "cards", "deal", "inf_align", "transfer_q"}
    assert all(strength_of(plan(name, tuned=True)[-1]) is None for name in ungraded)


@pytest.mark.parametrize("values", [(0, 1, 2), (-0.5, 0.5, 1.0), (0.0, 0.5), ("a", "b"), (True, False)])
def test_layers_signs_and_switches_are_no_strengths(values: tuple[Any, ...]) -> None:
    assert not Knob(0, "x", values).is_strength
    assert Knob(0, "x", (0.5, 1.0)).is_strength
    assert not Knob(0, "x", (0.5, 0.9), takes_whole=True).is_strength


def test_a_real_method_is_matched_on_validation_and_measured_on_test(protocol: Protocol, tmp_path: Path) -> None:
    matched = replace(protocol, match_kl=0.05, n_validation=8, n_examples=8)
    outcome = run(matched, "caa,random_direction,static_prompt", Options(out=tmp_path))
    assert not outcome.failures
    unsteered, *steered, prompted = outcome.records
    assert unsteered.protocol["objective"] == "kl"
    assert (unsteered.protocol["match_kl"], unsteered.protocol["tuning_budget"]) == (0.05, 8)
    assert unsteered.tuning == prompted.tuning == {}
    assert unsteered.metrics["kl"] == 0
    for record in steered:
        assert record.tuning["matched"]
        assert record.tuning["objective"] == "kl"
        chosen = record.tuning["chosen"]
        (kl,) = (t["kl"] for t in record.tuning["trials"] if t["hyperparameters"] == chosen)
        assert kl == pytest.approx(0.05, rel=tuning.KL_TOLERANCE)
        assert record.metrics["kl"] == pytest.approx(0.05, rel=1)


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan"), inf])
def test_a_target_must_be_positive(target: float) -> None:
    with pytest.raises(SteerbenchError, match=r"match_kl is .*; it must be above 0, in nats per token"):
        Protocol(match_kl=target)


# Sweeps


def test_a_sweep_is_the_method_at_every_strength_as_if_given() -> None:
    (method,) = plan("caa:layer=0")[1:]
    points = sweep(method)
    assert [str(p.spec) for p in points[:2]] == ["caa:layer=0:relative_norm=0.05", "caa:layer=0:relative_norm=0.1"]
    assert len(points) >= 5
    for point in points:
        (again,) = plan(str(point.spec))[1:]
        assert again == point
    assert [str(m.spec) for m in plan("static_prompt,best_of_n:n=2", swept=True)] == [
        "unsteered",
        "static_prompt",
        "best_of_n:n=2",
    ]


def test_methods_go_over_the_values_of_a_setting_that_they_leave_open() -> None:
    assert spread_over("caa,static_prompt,repe:last_layer=1", ["layer=0,2"]) == (
        "caa:layer=0,caa:layer=2,static_prompt,repe:last_layer=1"
    )
    assert spread_over("caa:layer=1,iti+caa", ["layer=0,0.5"]) == "caa:layer=1,iti+caa:layer=0,iti+caa:layer=0.5"
    both = spread_over("caa", ["layer=0,1", "relative_norm=0.1,0.2"])
    assert both.split(",") == [f"caa:layer={i}:relative_norm={r}" for i in (0, 1) for r in (0.1, 0.2)]
    with pytest.raises(SteerbenchError, match="--over goes over 'layer' twice; give all of its values at once"):
        spread_over("caa", ["layer=0", "layer=1"])


def test_a_run_over_layers_leaves_a_record_for_each(run_cli: Callable[..., Result], tmp_path: Path) -> None:
    done = run_cli("--methods", "caa,static_prompt", "--over", "layer=0,1")
    assert done.exit_code == 0, done.stderr
    found = [r for r in Store(tmp_path / "runs").records() if "caa" in r.method]
    assert sorted(r.parts[0]["hyperparameters"]["layer"] for r in found) == [0, 1]


def test_every_method_that_searches_has_a_curve_of_five_points() -> None:
    for name in (
        "ablation",
        "act_add",
        "alignez",
        "caa",
        "iti",
        "random_direction",
        "re_control",
        "repe",
        "shuffled_labels",
        "static_re",
    ):
        assert len(sweep(plan(name)[-1])) >= 5


def test_a_sweep_leaves_a_record_for_each_strength(
    run_cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_cli("--methods", "caa,static_prompt", "--sweep")
    assert done.exit_code == 0, done.stderr
    found = Store(tmp_path / "runs").records()
    strengths = sorted(r.parts[0]["hyperparameters"]["relative_norm"] for r in found if "caa" in r.method)
    assert strengths == [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert {r.method for r in found if "caa" not in r.method} == {"unsteered", "static_prompt"}
    refused = run_cli("--methods", "caa", "--sweep", "--tune", "2")
    assert refused.exit_code == 2
    assert "--sweep measures every strength" in refused.stderr
