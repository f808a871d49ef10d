"""The leaderboard ranks what was measured alike, and says which field differs otherwise."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steerbench import Record, SteerbenchError, leaderboard
from steerbench.ranking import write_csv

spec = importlib.util.spec_from_file_location("test_records", Path(__file__).with_name("test_records.py"))
assert spec
assert spec.loader
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
make: Any = module.make


def both(method: str, **protocol: Any) -> list[Record]:
    return [make(method, seed, **protocol) for seed in (0, 1)]


def test_rows_are_means_over_seeds_in_order_of_reward() -> None:
    table = leaderboard([*both("unsteered"), *both("caa")])
    assert list(table["method"]) == ["caa", "unsteered"]
    assert list(table["rank"]) == [1, 2]
    assert list(table["reward"]) == [2.0, 1.0]
    assert list(table["seeds"]) == [2, 2]


def test_ties_are_shown_as_ties() -> None:
    table = leaderboard([*both("one"), *both("two"), *both("unsteered")])
    assert list(table["rank"]) == [1, 1, 3]


def test_a_method_without_all_seeds_has_no_rank() -> None:
    table = leaderboard([*both("unsteered"), make("caa", 1)])
    ranks = dict(zip(table["method"], table["rank"], strict=True))
    assert ranks["unsteered"] == 1
    assert pd.isna(ranks["caa"])


def test_tasks_are_ranked_apart() -> None:
    table = leaderboard([*both("unsteered"), *both("caa"), *both("caa", task="hh_rlhf")])
    assert list(zip(table["task"], table["rank"], strict=True)) == [("hh_rlhf", 1), ("shp", 1), ("shp", 2)]


FIELDS: dict[str, Any] = {
    "task_version": 2,
    "data": "sha256:other",
    "split": "validation",
    "n_examples": 3,
    "examples": "other",
    "n_train": 9,
    "train_examples": "other",
    "max_prompt_tokens": 7,
    "model": "sha256:b",
    "dtype": "bfloat16",
    "prompt_format": "plain-v2",
    "max_new_tokens": 1,
    "temperature": 0.5,
    "top_k": 5,
    "top_p": 0.5,
    "reward_model": "sha256:c",
    "held_out_reward": "sha256:d",
    "encoder": "sha256:e",
    "tuning_budget": 4,
    "seeds": [0, 1, 2],
    "steerbench": "9.9",
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_the_protocol_must_be_equal(field: str) -> None:
    records = [*both("unsteered"), *both("caa", **{field: FIELDS[field]})]
    with pytest.raises(SteerbenchError, match=rf"not measured alike.*{field}: .* != "):
        leaderboard(records)


def test_device_batch_size_and_labels_do_not_count() -> None:
    caa = [
        replace(r, environment={"device": "gpu", "batch_size": 7}, labels={**r.labels, "model": "elsewhere"})
        for r in both("caa")
    ]
    table = leaderboard([*both("unsteered"), *caa])
    assert list(table["rank"]) == [1, 2]


def test_two_sources_of_one_method_are_two_rows_with_different_names() -> None:
    changed = [replace(r, parts=[{**r.parts[0], "source": "changed"}]) for r in both("caa")]
    table = leaderboard([*both("caa"), *changed])
    assert table["method"].nunique() == 2
    assert all(name.startswith("caa #") for name in table["method"])


def test_missing_scores_stay_empty() -> None:
    table = leaderboard(both("caa"))
    assert table["held_out_reward"].isna().all()


def test_nothing_to_rank_is_told() -> None:
    with pytest.raises(SteerbenchError, match="no records"):
        leaderboard([])


def test_csv_has_numbers_in_full_and_a_fixed_order(tmp_path: Path) -> None:
    table = leaderboard([*both("unsteered"), *both("caa")])
    table.loc[0, "diversity"] = 1 / 3
    write_csv(table, tmp_path / "new" / "table.csv")
    text = (tmp_path / "new" / "table.csv").read_bytes()
    assert b"\r" not in text
    again = pd.read_csv(tmp_path / "new" / "table.csv")
    assert list(again.columns[:4]) == ["task", "rank", "method", "reward"]
    assert again.loc[0, "diversity"] == 1 / 3
    shuffled = leaderboard([*both("caa"), *both("unsteered")])
    write_csv(shuffled, tmp_path / "b.csv")
    write_csv(leaderboard([*both("unsteered"), *both("caa")]), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_difference_of_hashes_is_told_with_names() -> None:
    caa = [
        replace(r, labels={**r.labels, "model": "other"}, protocol={**r.protocol, "model": "sha256:b"})
        for r in both("caa")
    ]
    with pytest.raises(SteerbenchError, match=r"model: sha256:a != sha256:b \(m and other\)"):
        leaderboard([*both("unsteered"), *caa])
