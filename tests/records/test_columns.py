"""Every number has one column, which says what it is called and means; tables and the page are made from it."""

from collections import Counter
from pathlib import Path

import pandas as pd
from made_records import make

from steerbench import leaderboard
from steerbench.records.column_page import END, START, column_table
from steerbench.records.columns import (
    CHOICE_COLUMNS,
    CHOICE_SCORES,
    COLUMNS,
    GAIN_COLUMNS,
    GAINS,
    LATENCY,
    RATES,
    SIDE_EFFECTS,
)
from steerbench.records.markdown import write_between
from steerbench.records.record import METRICS
from steerbench.records.side_effects import AGREEMENTS

ROOT = Path(__file__).parents[2]


def test_every_metric_of_a_record_has_a_column() -> None:
    assert {*METRICS, *GAINS, *RATES, *LATENCY, *GAIN_COLUMNS, *SIDE_EFFECTS, *CHOICE_COLUMNS} <= {*COLUMNS}
    assert {name: COLUMNS[name].meaning for name in METRICS} == METRICS


def test_no_heading_stands_over_two_columns() -> None:
    for headings in ([c.heading for c in COLUMNS.values()], [c.title for c in COLUMNS.values()]):
        assert all(headings)
        assert not [heading for heading, n in Counter(headings).items() if n > 1]


def test_a_column_says_what_it_means_and_belongs_to_one_that_is_there() -> None:
    assert not [column.name for column in COLUMNS.values() if len(column.meaning.split()) < 2 and not column.of]
    gains = {f"{name}_gain" for name in (*GAINS, *CHOICE_SCORES, "length_controlled")}
    told = {column.of for column in COLUMNS.values() if column.of}
    assert told == {*RATES, *gains, *AGREEMENTS, "steerability", "damage"}


def test_the_csv_has_the_columns_in_their_order() -> None:
    assert list(leaderboard([make("unsteered", 0)])) == list(COLUMNS)
    assert list(pd.read_csv(ROOT / "results" / "leaderboard.csv")) == list(COLUMNS)


def test_the_shares_and_gains_are_these() -> None:
    assert GAINS == ("reward", "held_out_reward", "gold")
    shares = ("win_rate", "win_rate_preferred", "held_out_win_rate", "held_out_win_rate_preferred", "worse")
    assert (*shares, "truncated", "empty", "accuracy", "mc1") == RATES


def test_the_page_is_what_the_columns_say(tmp_path: Path) -> None:
    committed = (ROOT / "docs" / "columns.md").read_text(encoding="utf-8")
    copy = tmp_path / "columns.md"
    copy.write_text(committed, encoding="utf-8")
    write_between(copy, START, END, column_table())
    assert copy.read_text(encoding="utf-8") == committed
