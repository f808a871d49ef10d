"""When a chosen value lies at an end of what was searched."""

from typing import Any

import pytest

from steerbench.records.search_range import ends_chosen, ends_of

RANGE: dict[str, list[Any]] = {
    "strength": [0.5, 1.0, 2.0],
    "layer": [0.0, 0.4, 0.8],
    "pool": ["mean", "last"],
    "end": [False, True],
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"strength": 0.5}, ["strength"]),
        ({"strength": 2.0, "layer": 0.8}, ["strength", "layer"]),
        ({"layer": 0.0}, []),
        ({"pool": "mean", "end": True}, []),
        ({"strength": 5.0, "layer": None}, ["strength"]),  # a default beyond the range, and one that is no number
        ({"strength": 0.1, "layer": [0.0, 0.8]}, ["strength"]),
    ],
)
def test_the_ends_of_numbers_count_but_for_nought(changed: dict[str, Any], expected: list[str]) -> None:
    assert ends_of(RANGE, {"strength": 1.0, "layer": 0.4, "pool": "last", "end": False} | changed) == expected


def test_one_value_is_no_range() -> None:
    assert ends_of({"strength": [1.0]}, {"strength": 1.0}) == []


def test_older_records_searched_what_they_tried() -> None:
    trials = [{"hyperparameters": {"strength": s}, "score": s} for s in (0.5, 1.0, 2.0)]
    assert ends_chosen({"trials": trials, "chosen": {"strength": 2.0}}) == ["strength"]
    assert ends_chosen({"trials": trials, "chosen": {"strength": 1.0}}) == []
    wider = {"trials": trials, "chosen": {"strength": 2.0}, "searched": {"strength": [0.5, 1.0, 2.0, 4.0]}}
    assert ends_chosen(wider) == []


def test_what_was_solved_for_or_not_tuned_has_no_ends() -> None:
    trials = [{"hyperparameters": {"strength": s}, "kl": s} for s in (0.5, 1.0)]
    assert ends_chosen({"trials": trials, "chosen": {"strength": 1.0}, "target": 0.05}) == []
    assert ends_chosen({}) == []
