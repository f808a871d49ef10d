"""What compares with other scores is derived when records are read, and is what older records keep."""

from dataclasses import replace
from math import inf, isnan, nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_records import make

from steerbench import Record, SteerbenchError, Store, leaderboard
from steerbench.records.comparisons import COMPARISONS, compared, comparisons, wins
from steerbench.records.leaderboard import method_gaps
from steerbench.records.statistics import paired_interval

ROOT = Path(__file__).parents[2]
BASE, STEERED, PREFERRED = [0.0, 1.0, 2.0, 3.0], [1.0, 1.00005, 1.0, 4.0], [2.0, 2.0, 1.0, 2.0]


def scored(method: str, scores: list[float], *, samples: int = 1) -> Record:
    ids = [f"p{i}" for i in range(4)]
    examples = pd.DataFrame({"id": ids, "group": ids, "sample": 0, "reward": scores, "preferred_reward": PREFERRED})
    again = [examples.assign(sample=k, reward=examples["reward"] - k) for k in range(samples)]
    metrics = {"reward": float(np.mean(scores))}
    return replace(make(method), metrics=metrics, examples=pd.concat(again, ignore_index=True))


def test_wins_are_those_of_each_pair() -> None:
    assert wins(STEERED, BASE) == [1.0, 0.5, 0.0, 1.0]
    found = wins([nan, inf, 1.0, inf], [1.0, 1.0, nan, inf])
    assert all(isnan(win) for win in found)
    with pytest.raises(ValueError, match="2 scores and 1"):
        wins([1.0, 2.0], [1.0])


def test_comparisons_are_derived_from_raw_scores() -> None:
    found = compared(scored("caa", STEERED), scored("unsteered", BASE))
    assert list(found["win_rate"]) == [1.0, 0.5, 0.0, 1.0]
    assert list(found["worse"]) == [0.0, 0.0, 1.0, 0.0]
    assert list(found["win_rate_preferred"]) == [0.0, 0.0, 0.5, 1.0]
    told = comparisons(scored("caa", STEERED), scored("unsteered", BASE))
    assert told == {"win_rate": 0.625, "worse": 0.25, "win_rate_preferred": 0.375}


def test_each_sample_is_held_against_that_of_the_same_prompt_in_whatever_order() -> None:
    steered, base = scored("caa", STEERED, samples=2), scored("unsteered", BASE, samples=2)
    expected = compared(steered, base)["win_rate"]
    shuffled = replace(base, examples=base.examples.sample(frac=1, random_state=0).reset_index(drop=True))
    assert list(compared(steered, shuffled)["win_rate"]) == list(expected) == [1.0, 0.5, 0.0, 1.0] * 2
    doubled = replace(base, examples=shuffled.examples.set_axis([0] * 8))
    assert list(compared(steered, doubled)["win_rate"]) == list(expected)
    assert paired_interval([steered.examples], [doubled.examples], "reward").mean == 0.25
    other = replace(base, examples=base.examples.assign(id=[f"q{i}" for i in range(8)]))
    with pytest.raises(SteerbenchError, match="hold different test prompts"):
        compared(steered, other)


def test_without_an_unsteered_record_only_the_preferred_reply_is_compared() -> None:
    steered = scored("caa", STEERED)
    table = leaderboard([steered]).iloc[0]
    assert table["win_rate_preferred"] == 0.375
    assert pd.isna(table["win_rate"])
    assert pd.isna(table["worse"])
    both = leaderboard([steered, scored("unsteered", BASE)]).set_index("method")
    assert both.loc["caa", ["win_rate", "worse"]].tolist() == [0.625, 0.25]
    assert both.loc["unsteered", ["win_rate", "worse"]].tolist() == [0.5, 0.0]


def test_a_win_rate_is_empty_where_a_seed_has_nothing_beside_it() -> None:
    records = [scored("unsteered", BASE), scored("caa", STEERED), replace(scored("caa", STEERED), seed=1)]
    assert pd.isna(leaderboard(records).set_index("method").loc["caa", "win_rate"])


def test_what_an_older_record_keeps_counts_where_it_cannot_be_derived() -> None:
    old = replace(scored("caa", STEERED), metrics={"reward": 1.0, "win_rate": 0.75}, schema_version=1)
    assert comparisons(old, None)["win_rate"] == 0.75
    assert leaderboard([old]).loc[0, "win_rate"] == 0.75
    assert comparisons(old, scored("unsteered", BASE))["win_rate"] == 0.625


def test_power_of_a_comparison_is_told() -> None:
    gaps = method_gaps([scored("unsteered", BASE), scored("caa", STEERED)], "win_rate")
    assert list(gaps["shp", "caa"].values) == [0.5, 0.0, -0.5, 0.5]


def test_older_records_give_what_they_keep() -> None:
    records = Store(ROOT / "tests/support/first_layout").records()
    unsteered = {(r.labels["task"], r.seed): r for r in records if r.method == "unsteered"}
    for record in records:
        beside = unsteered[record.labels["task"], record.seed]
        told = comparisons(record, beside)
        assert told == {name: record.metrics[name] for name in COMPARISONS if name in record.metrics}
        kept = [name for name in COMPARISONS if name in record.examples]
        assert {"win_rate", "worse"} <= {*kept}
        pd.testing.assert_frame_equal(compared(record, beside)[kept], record.examples[kept], check_exact=True)
