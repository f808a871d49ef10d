"""Given answers over strength: planted slopes come back, and the page draws them with their intervals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_records import make

from steerbench import Record, Store
from steerbench.records.choice_gains import LOG_ODDS
from steerbench.report import write_report
from steerbench.report.answer_plot import answer_plot
from steerbench.report.choice_curves import choice_panels, moved_along, steerability_table
from steerbench.report.curves import sweeps
from steerbench.report.groups import grouped

PLAIN = np.linspace(-1.0, 1.0, 20)
SLOPES = np.where(np.arange(20) < 4, -0.5, 2.0)


def at(strength: float, dial: str = "strength") -> Record:
    odds = PLAIN + strength * SLOPES
    record = make("unsteered" if strength == 0 else f"caa:{dial}={strength}")
    parts = [{"name": "caa", "hyperparameters": {dial: strength}, "source": "s"}] if strength else record.parts
    scores = {LOG_ODDS: odds, "matching": 1 / (1 + np.exp(-odds))}
    metrics = {"reward": 1.0, "matching": float(scores["matching"].mean())}
    return replace(record, parts=parts, metrics=metrics, examples=record.examples.assign(**scores))


def test_the_slope_of_each_question_comes_back() -> None:
    (group,) = grouped([at(s) for s in (0, -1.0, 1.0, 2.0)])
    (curve,) = sweeps(group)
    found = moved_along(group, curve)
    assert found is not None
    assert found.slope.mean == pytest.approx(1.5)
    assert found.deviation == pytest.approx(SLOPES.std(ddof=1))
    assert found.against == 0.2
    heads, row = steerability_table(group, [curve])
    assert len(heads) == len(row)
    assert row[:2] == ["caa", "strength"]
    assert row[2].startswith("1.50 (")
    assert row[4] == "20%"


def test_what_is_no_strength_has_no_steerability() -> None:
    (group,) = grouped([at(s, "layer") for s in (0, 1.0, 2.0, 3.0)])
    assert steerability_table(group, sweeps(group)) == []
    (shown,) = choice_panels(group, sweeps(group))
    assert shown.note == "layer"


def test_records_without_given_answers_draw_nothing() -> None:
    records = [make("unsteered"), *(replace(at(s), examples=make("caa").examples) for s in (1.0, 2.0, 3.0))]
    (group,) = grouped(records)
    assert choice_panels(group, sweeps(group)) == []
    assert steerability_table(group, sweeps(group)) == []


def test_a_plot_draws_the_curves_of_given_answers(tmp_path: Path) -> None:
    runs = [at(strength) for strength in (0, -1.0, 1.0, 2.0)]
    unrewarded = [replace(one, examples=one.examples.drop(columns="reward")) for one in runs]
    for one in unrewarded:
        Store(tmp_path / "runs").write(replace(one, metrics={"matching": one.metrics["matching"]}))
    write_report([tmp_path / "runs"], tmp_path / "page.html", plot=tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<?xml")
    assert "matching of caa over strength" in drawn
    assert answer_plot(grouped([runs[0]])) == ""


def test_the_page_draws_the_curve(tmp_path: Path) -> None:
    for strength in (0, -1.0, 1.0, 2.0):
        Store(tmp_path / "runs").write(at(strength))
    write_report([tmp_path / "runs"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Given answers over strength" in page
    assert "matching of caa over strength, with 95 % intervals over the questions" in page
    assert "1.50 (" in page
