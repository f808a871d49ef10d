"""What a steering does to given answers: against numbers that are written out, on records whose scores are planted."""

from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_records import make

from steerbench import Record, leaderboard
from steerbench.cli.tables import show
from steerbench.records.choice_gains import LOG_ODDS, mean_over_questions
from steerbench.records.columns import CHOICE_COLUMNS
from steerbench.records.markdown import markdown
from steerbench.records.statistics import paired_interval

N = 20
PLAIN = np.linspace(-2.0, 2.0, N)
"""Log-odds of the questions without steering."""


def asked(method: str, log_odds: Any, seed: int = 0, **columns: Any) -> Record:
    record = make(method, seed)
    scores = {LOG_ODDS: log_odds, "matching": 1 / (1 + np.exp(-np.asarray(log_odds)))}
    return replace(
        record,
        examples=record.examples.assign(**scores, **columns),
        metrics={"reward": 1.0, "matching": float(scores["matching"].mean())},
    )


def checked(record: Record, scores: list[float]) -> Record:
    kept = {"task": "mmlu", "score": "accuracy", "mean": fmean(scores), "scores": scores}
    return replace(record, report=record.report | {"capability": kept})


def row(records: list[Record], method: str = "caa") -> Any:
    return leaderboard(records).set_index("method").loc[method]


def test_steerability_is_the_mean_rise_and_anti_steerable_the_share_that_falls() -> None:
    rises = np.where(np.arange(N) < 5, -1.0, 0.5)  # a quarter is moved the other way
    plain, steered = asked("unsteered", PLAIN), asked("caa", PLAIN + rises)
    found = row([plain, steered])
    assert found["steerability"] == pytest.approx(0.125)
    assert found["anti_steerable"] == 0.25
    gain = (steered.examples["matching"] - plain.examples["matching"]).mean()
    assert found["matching_gain"] == pytest.approx(gain)
    for column, name in (("steerability", LOG_ODDS), ("matching_gain", "matching")):
        expected = paired_interval([steered.examples], [plain.examples], name)
        assert [found[column], found[f"{column}_low"], found[f"{column}_high"]] == pytest.approx(list(expected))
    itself = row([plain, steered], "unsteered")
    assert [itself["steerability"], itself["matching_gain"]] == [0, 0]
    assert pd.isna(itself["anti_steerable"])


def test_what_is_not_moved_is_not_moved_the_other_way() -> None:
    assert row([asked("unsteered", PLAIN), asked("caa", PLAIN - 1e-5)])["anti_steerable"] == 0


def test_seeds_are_averaged_question_by_question() -> None:
    plain = [asked("unsteered", PLAIN, seed) for seed in (0, 1)]
    up_and_down = [asked("caa", PLAIN + 1, 0), asked("caa", PLAIN - 0.5, 1)]
    found = row([*plain, *up_and_down])
    assert found["steerability"] == pytest.approx(0.25)
    assert found["anti_steerable"] == 0


def test_damage_is_what_is_lost_on_the_same_questions() -> None:
    plain, steered = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.5], [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.5]
    records = [checked(make("unsteered"), plain), checked(make("caa"), steered)]
    found = row(records)
    assert found["capability"] == fmean(steered)
    assert found["damage"] == fmean(plain) - fmean(steered) == 0.25
    assert found["damage_low"] < 0.25 < found["damage_high"]
    same = row([checked(make("unsteered"), plain), checked(make("caa"), plain)])
    assert [same[f"damage{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]
    assert row(records, "unsteered")["damage"] == 0


def test_nothing_is_told_where_nothing_was_asked() -> None:
    plain, steered = make("unsteered"), make("caa")
    assert row([plain, steered])[list(CHOICE_COLUMNS)].isna().all()
    assert row([asked("caa", PLAIN)])[["steerability", "anti_steerable", "damage"]].isna().all()
    beside = row([checked(plain, [1.0, 0.0]), steered])  # as a method that chooses among candidates
    assert beside[["capability", "damage"]].isna().all()


def test_means_have_intervals_over_questions() -> None:
    record = asked("caa", PLAIN)
    found = mean_over_questions([record], "matching")
    assert found is not None
    assert found.mean == pytest.approx(0.5)
    assert found.low is not None
    half = 1.96 * float(record.examples["matching"].std()) / N**0.5
    assert found.mean - found.low == pytest.approx(half, rel=0.2)
    assert mean_over_questions([record, make("caa", 1)], "matching") is None


def test_tables_show_them(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    records = [checked(asked("unsteered", PLAIN), [1.0, 1.0]), checked(asked("caa", PLAIN + 1), [1.0, 0.0])]
    table = leaderboard(records)
    show(Console(width=160), table, records)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("matching", "anti-steerable", "damage"))
    (line,) = [line for line in markdown(table).splitlines() if "`caa`" in line]
    assert "| 0.000 | 0.500 |" in line
