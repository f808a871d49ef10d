"""Linear gain against quadratic loss over strength: against numpy, and where no such curve may be told."""

from collections.abc import Sequence

import numpy as np
import pytest
from report_pages import make

from steerbench import Record
from steerbench.report.curves import Curve, sweeps
from steerbench.report.figures import sweep_panels
from steerbench.report.groups import Group, grouped
from steerbench.report.tradeoff import Tradeoff, tradeoff_table, tradeoffs

STRENGTHS = (0.5, 1.0, 2.0, 3.0)


def swept(a: float, b: float, *, dial: str = "strength", strengths: Sequence[float] = STRENGTHS) -> list[Record]:
    """Return records whose reward rises by a * s - b * s^2, more or less, and whose gold falls as `make` says."""
    lifts = {s: a * s - b * s * s for s in strengths}
    return [make(f"caa:{dial}={s}", lift=lift, hyperparameters={dial: s}) for s, lift in lifts.items()]


def fitted(records: Sequence[Record]) -> tuple[Group, list[Curve], list[dict[str, Tradeoff]]]:
    (group,) = grouped(records)
    found = sweeps(group)
    return group, found, [{one.score: one for one in fits} for fits in tradeoffs(group, found)]


def test_the_fit_is_that_of_all_prompts_and_strengths() -> None:
    unsteered, records = make("unsteered"), swept(2.0, 0.4)
    _, _, (fits,) = fitted([unsteered, *records])
    for score in ("reward", "held_out_reward", "gold"):
        rows = [
            (s, steered - plain)
            for s, record in zip(STRENGTHS, records, strict=True)
            for steered, plain in zip(record.examples[score], unsteered.examples[score], strict=True)
        ]
        s, gains = np.array(rows).T
        (a, b), *_ = np.linalg.lstsq(np.stack([s, -(s**2)], 1), gains, rcond=None)
        found = fits[score]
        assert (found.linear.mean, found.quadratic.mean) == pytest.approx((a, b), abs=1e-6)
        assert found.at(1.5) == pytest.approx(1.5 * a - 2.25 * b, abs=1e-6)
        for told in (found.linear, found.quadratic):
            assert told.low is not None
            assert told.high is not None
            assert told.low < told.mean < told.high
        means = gains.reshape(len(STRENGTHS), -1).mean(axis=1)
        curve = np.array([found.at(x) for x in STRENGTHS])
        assert found.explained == pytest.approx(1 - ((means - curve) ** 2).sum() / ((means - means.mean()) ** 2).sum())


def test_the_best_strength_is_the_peak_where_it_is_sure() -> None:
    _, _, (fits,) = fitted([make("unsteered"), *swept(2.0, 0.4)])
    best = fits["reward"].best
    assert best is not None
    assert best.low is not None
    assert best.high is not None
    assert best.low < best.mean < best.high
    assert best.mean == pytest.approx(2.5, abs=0.2)
    assert fits["gold"].best is None  # it falls from the start
    assert fitted([make("unsteered"), *swept(2.0, 0.0)])[2][0]["reward"].best is None
    assert fitted([make("unsteered"), *swept(2.0, 0.1)])[2][0]["reward"].best is None  # at ten, never measured


def test_no_curve_is_fitted_to_a_count_nor_without_the_unsteered_model() -> None:
    _, curves, fits = fitted([make("unsteered"), *swept(1.0, 0.1, dial="n")])
    assert [one.dial for one in curves] == ["n"]
    assert fits == [{}]
    assert fitted(swept(1.0, 0.1))[2] == [{}]


def test_a_score_that_a_record_lacks_has_no_fit() -> None:
    records = [make("unsteered"), *swept(1.0, 0.1)]
    del records[2].examples["gold"]
    assert set(fitted(records)[2][0]) == {"reward", "held_out_reward"}


def test_one_cluster_has_no_intervals() -> None:
    records = [make("unsteered"), *swept(2.0, 0.4)]
    for record in records:
        record.examples["group"] = "g"
    found = fitted(records)[2][0]["reward"]
    assert (found.linear.low, found.quadratic.high, found.best) == (None, None, None)


def test_the_figures_are_told_and_the_curves_drawn() -> None:
    group, curves, fits = fitted([make("unsteered"), *swept(2.0, 0.4)])
    found = [list(one.values()) for one in fits]
    heads, first, *_ = tradeoff_table(curves, found)
    assert heads[:4] == ["method", "s", "score", "gain a per s"]
    assert first[:3] == ["caa", "strength", "reward"]
    assert float(first[3].split()[0]) == pytest.approx(2.0, abs=0.2)
    (plain,), (shown,) = sweep_panels(group, curves, [[]]), sweep_panels(group, curves, found)
    assert shown.svg.count("stroke-dasharray") == plain.svg.count("stroke-dasharray") + 3
    assert tradeoff_table([], []) == []
