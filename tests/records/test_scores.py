"""Columns that are made once say what pandas says of them, to the last bit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_study import Study, records

from steerbench import Record, leaderboard
from steerbench.records.agreement import agreement
from steerbench.records.comparisons import comparisons
from steerbench.records.scores import Scored, Scores, aligned
from steerbench.report.generations import as_json

N = 37


@pytest.fixture(scope="module")
def study() -> list[Record]:
    return list(records(Study(4, seeds=2, prompts=N)))


@pytest.mark.parametrize("column", [[1, 2, 3], [True, False, True], [0.1, float("nan"), 2.0], pd.array([1, None, 3])])
def test_numbers_are_those_of_the_column(column: Any) -> None:
    table = pd.DataFrame({"x": column, "text": ["a", "b", "c"]})
    scores = Scores(table)
    np.testing.assert_array_equal(
        scores.numbers("x"), pd.Series(column).astype("Float64").to_numpy(float, na_value=np.nan)
    )
    assert scores.has("x") is not pd.Series(column).isna().any()
    assert scores.numbers("text") is scores.numbers("elsewhere") is None
    assert not scores.has("x", "text")


def test_rows_in_another_order_are_put_into_that_of_the_first(study: list[Record]) -> None:
    table = study[0].examples
    shuffled = table.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(aligned(shuffled, table).table.reset_index(drop=True), table, check_exact=True)
    same = Scores(table.copy())
    assert aligned(same, table) is same


def test_comparisons_are_pandas_means_of_wins(study: list[Record]) -> None:
    unsteered, steered = study[0], study[2]
    gap = steered.examples["reward"] - unsteered.examples["reward"]
    won = (gap > 0).astype(float).where(gap.abs() > 1e-4, 0.5)
    for record in (steered, Scored.of(steered)):
        told = comparisons(record, unsteered)
        assert told["win_rate"] == float(won.mean())
        assert told["worse"] == float((won == 0).mean())


def test_ranks_with_ties_are_those_of_pandas() -> None:
    table = pd.DataFrame(np.random.default_rng(0).integers(0, 5, (N, 2)), columns=["reward", "gold"])
    ranks = [table[name].rank().to_numpy() for name in table]
    assert agreement(table, "reward", "gold") == float(np.corrcoef(ranks)[0, 1])


def test_examples_that_change_between_two_leaderboards_are_seen(study: list[Record]) -> None:
    changed = [replace(record, examples=record.examples.copy()) for record in study]
    before = leaderboard(changed)
    for record in changed[2:]:
        record.examples["reward"] += 1.0
    after = leaderboard(changed)
    gains = [table.set_index("method")["reward_gain"].drop("unsteered") for table in (before, after)]
    assert (gains[1] - gains[0]).to_numpy() == pytest.approx(1.0)


def test_no_character_of_html_is_left_in_the_data() -> None:
    text = "</script>&'<b>\\u003c"
    naive = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027"}
    assert as_json([text]) == "".join(naive.get(c, c) for c in '["</script>&\'<b>\\\\u003c"]')
