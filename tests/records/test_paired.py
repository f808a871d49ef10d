"""Two methods beside each other: means of differences on the same prompts and seeds, by pandas in the tests."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_records import make

from steerbench import Record, SteerbenchError
from steerbench.records.paired import paired_comparison


def drawn(method: str, seed: int, mean: float = 0.0, **protocol: object) -> Record:
    """A record whose rewards and lengths vary over prompts, in an order of its own."""
    record, generator = make(method, seed, **protocol), np.random.default_rng([*method.encode(), seed])
    rewards, lengths = generator.normal(mean, 1.0, 20), generator.integers(1, 50, 20).astype(float)
    table = record.examples.assign(reward=rewards, length=lengths).sample(frac=1.0, random_state=seed)
    metrics = {"reward": float(rewards.mean()), "length": float(lengths.mean()), "kl": 0.1 * (seed + 1)}
    return replace(record, metrics=metrics, examples=table, steering=f"{method}{seed}")


def merged(first: Record, second: Record) -> pd.DataFrame:
    return first.examples.merge(second.examples, on="id", suffixes=("_first", "_second"))


def test_differences_are_those_on_the_same_prompts_and_seeds() -> None:
    first, second = ([drawn(method, seed) for seed in (0, 1)] for method in ("caa", "iti"))
    table = paired_comparison([*second, *first], "caa", "iti").set_index("metric")
    assert list(table.index) == ["reward", "length", "kl"]
    for name in ("reward", "length"):
        pairs = [merged(a, b) for a, b in zip(first, second, strict=True)]
        gaps = np.array([(pair[f"{name}_first"] - pair[f"{name}_second"]) for pair in pairs])
        row = table.loc[name]
        assert row["difference"] == pytest.approx(gaps.mean())
        assert row["difference"] == pytest.approx(row["first"] - row["second"])
        assert row["higher"] == pytest.approx(((gaps > 0) + 0.5 * (gaps == 0)).mean())
        assert row["low"] < row["difference"] < row["high"]
    assert table.loc["kl", "first"] == pytest.approx(0.15)
    assert pd.isna(table.loc["kl", ["difference", "low", "high", "p", "higher"]]).all()
    assert (table["seeds"] == 2).all()


def test_the_other_way_round_it_is_the_opposite() -> None:
    records = [drawn(method, seed, mean) for method, mean in (("caa", 0.8), ("iti", 0.0)) for seed in (0, 1)]
    one = paired_comparison(records, "caa", "iti").set_index("metric").loc["reward"]
    other = paired_comparison(records, "iti", "caa").set_index("metric").loc["reward"]
    assert [one["difference"], one["low"], one["high"]] == pytest.approx(
        [-other["difference"], -other["high"], -other["low"]]
    )
    assert one["p"] == pytest.approx(other["p"])
    assert one["higher"] == pytest.approx(1 - other["higher"])


def test_only_shared_seeds_count_and_one_of_a_random_fit_claims_nothing() -> None:
    records = [drawn("caa", 0), drawn("caa", 1), drawn("iti", 1)]
    assert paired_comparison(records, "caa", "iti")["seeds"].tolist() == [1, 1, 1]
    assert paired_comparison(records, "caa", "iti")["p"].notna().sum() == 2  # neither fit is random
    random = [replace(record, report={}) for record in records]
    assert paired_comparison(random, "caa", "iti")["p"].isna().all()


def test_what_cannot_be_compared_is_told() -> None:
    records = [drawn("caa", 0), drawn("iti", 1)]
    with pytest.raises(SteerbenchError, match=r"unknown method in these records 'itti'. Did you mean 'iti'\?"):
        paired_comparison(records, "caa", "itti")
    with pytest.raises(SteerbenchError, match="no task has records of caa and iti with a seed in common"):
        paired_comparison(records, "caa", "iti")
    with pytest.raises(SteerbenchError, match="not measured alike"):
        paired_comparison([drawn("caa", 0), drawn("iti", 0, temperature=1.0)], "caa", "iti")
