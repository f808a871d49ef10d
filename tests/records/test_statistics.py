"""Intervals: as wide as theory and a naive bootstrap say, over clusters of prompts, and of paired differences."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerbench import SteerbenchError
from steerbench.records.statistics import Gaps, Interval, gaps, intervals, paired_interval


def examples(values: Any, groups: Any = None) -> pd.DataFrame:
    """Return a table of rewards, every prompt a group of its own unless told otherwise."""
    ids = [f"id{i:05d}" for i in range(len(values))]
    return pd.DataFrame({"id": ids, "group": ids if groups is None else groups, "reward": np.asarray(values, float)})


def over_zero(values: Any, groups: Any = None, n_resamples: int = 10_000) -> Interval:
    """Return the interval of differences that are given directly, in a column whose numbers are exact."""
    tables = [examples(v, groups).rename(columns={"reward": "gold"}) for v in (values, np.zeros(len(values)))]
    return paired_interval(tables[:1], tables[1:], "gold", n_resamples)


def width(interval: Interval) -> float:
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


def normal(seed: int, *shape: int, mean: float = 0.0, sd: float = 1.0) -> Any:
    return np.random.default_rng(seed).normal(mean, sd, shape)


# What the numbers are


def test_many_normal_differences_have_the_interval_of_theory() -> None:
    values = normal(0, 2000, mean=0.7, sd=3.0)
    found = over_zero(values)
    half = 1.96 * values.std() / 2000**0.5
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert width(found) == pytest.approx(2 * half, rel=0.05)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)


def test_clusters_of_several_sizes_agree_with_a_loop_over_resamples() -> None:
    """Percentiles, which BCa does not leave far for a statistic that is hardly skewed."""
    generator = np.random.default_rng(1)
    sizes = generator.integers(1, 5, 60)
    groups = np.repeat(np.arange(60), sizes)
    values = generator.normal(size=60)[groups] + generator.normal(size=len(groups))
    means = []
    for _ in range(4000):
        drawn = generator.integers(0, 60, 60)
        means.append(np.concatenate([values[groups == cluster] for cluster in drawn]).mean())
    found = over_zero(values, groups)
    assert [found.low, found.high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.1 * width(found))


def test_a_skewed_sample_has_the_interval_of_scipy() -> None:
    """The statistic that counts draws is the plain mean, for one prompt per cluster."""
    from scipy.stats import bootstrap

    values = np.random.default_rng(2).exponential(size=40)
    wanted = bootstrap((values,), np.mean, n_resamples=10_000, rng=np.random.default_rng(0)).confidence_interval
    found = over_zero(values)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_clusters_of_several_sizes_have_the_interval_of_scipy() -> None:
    """Resampled as pairs of a sum and a number of prompts."""
    from scipy.stats import bootstrap

    generator = np.random.default_rng(3)
    groups = np.sort(generator.integers(0, 50, 120))
    values = generator.normal(size=120)
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    wanted = bootstrap(
        (sums, sizes),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        n_resamples=10_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = over_zero(values, groups)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


@pytest.mark.slow
def test_about_95_of_100_intervals_hold_the_truth() -> None:
    """Of 400 samples of 60 clusters of two prompts, at most four standard errors below and above."""
    groups = np.repeat(np.arange(60), 2)
    hits = 0
    for seed in range(400):
        found = over_zero(1.0 + normal(seed, 60)[groups] + normal(seed + 1000, 120), groups, n_resamples=500)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1.0 <= found.high
    assert 0.905 <= hits / 400 <= 0.99


# What is compared


def test_a_prompt_that_stands_twice_in_its_cluster_says_nothing_new() -> None:
    values = normal(4, 100)
    groups = [f"g{i}" for i in range(100)]
    once = over_zero(values, groups)
    assert over_zero(np.repeat(values, 2), np.repeat(groups, 2)) == pytest.approx(once, abs=1e-9)
    apart = over_zero(np.repeat(values, 2))
    assert width(apart) == pytest.approx(width(once) / 2**0.5, rel=0.1)


def test_what_prompts_differ_in_for_both_models_cancels() -> None:
    hard, gain = normal(5, 300, sd=100.0), normal(6, 300, mean=0.5)
    found = paired_interval([examples(hard + gain)], [examples(hard)], "reward")
    assert found == pytest.approx(over_zero(gain), abs=1e-6)
    assert width(found) < 0.3


def test_neither_the_order_of_rows_nor_another_run_changes_a_bit() -> None:
    steered, unsteered = examples(normal(7, 80), [i // 3 for i in range(80)]), examples(normal(8, 80), [0] * 80)
    unsteered["group"] = steered["group"]
    found = paired_interval([steered], [unsteered], "reward")
    assert paired_interval([steered], [unsteered], "reward") == found
    shuffled = paired_interval([steered.sample(frac=1, random_state=1)], [unsteered[::-1]], "reward")
    assert shuffled == found


def test_what_is_computed_beside_it_changes_no_bit() -> None:
    ids = [str(i) for i in range(300)]
    found = [Gaps(ids, ids, normal(seed, 300, sd=10.0**seed), None) for seed in range(7)]
    together = intervals(found)
    assert together == [intervals([one])[0] for one in found]
    assert intervals(found[::-1]) == together[::-1]
    assert intervals([]) == []


def test_seeds_are_averaged_on_each_prompt_before_it_is_resampled() -> None:
    """A prompt counts once, however many seeds it was measured with."""
    own, effects = normal(9, 4, 200, sd=10.0), normal(10, 4, 200)
    steered, unsteered = [examples(row) for row in own + effects], [examples(row) for row in own]
    found = paired_interval(steered, unsteered, "reward")
    assert found == pytest.approx(over_zero(effects.mean(axis=0)), abs=1e-6)
    once = paired_interval(steered[:1], unsteered[:1], "reward")
    assert paired_interval(steered[:1] * 4, unsteered[:1] * 4, "reward") == pytest.approx(once, abs=1e-9)
    assert width(found) == pytest.approx(width(once) / 2, rel=0.2)


@pytest.mark.parametrize("other", [["a", "c"], ["a"], ["a", "b", "b"]])
def test_other_prompts_are_refused(other: list[str]) -> None:
    left, right = (pd.DataFrame({"id": ids, "group": ids, "reward": 1.0}) for ids in (["a", "b"], other))
    for tables in (([left], [right]), ([right], [left]), ([left, left], [left, right])):
        with pytest.raises(
            SteerbenchError, match=r"different test prompts: '[bc]' is not in both .* delete its folder"
        ):
            gaps(*tables, "reward")
    with pytest.raises(SteerbenchError, match="different test prompts"):
        intervals([gaps([left], [left], "reward"), gaps([right], [right], "reward")])


# Where there is little to resample; warnings are errors here


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_clusters_that_agree_have_no_width(value: float) -> None:
    groups = [0, 1, 1, 1, 2, 2]
    found = over_zero([value] * 6, groups)
    assert found.mean == found.low == found.high == pytest.approx(value)


def test_one_cluster_has_no_interval() -> None:
    assert over_zero([1.0, 2.0], ["g", "g"]) == (1.5, None, None)
    assert over_zero([1.0]) == (1.0, None, None)


@pytest.mark.parametrize(
    "values", [[0.0, 1.0], [1e-9] + [0.0] * 200, [1e12, *[0.0] * 9], [0.1] * 50 + [0.3], [1.0, 1.0 + 1e-8, 1.0]]
)
def test_little_variation_gives_numbers_around_the_mean(values: list[float]) -> None:
    found = over_zero(values)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.mean <= found.high
    assert found.low < found.high


def test_constant_differences_stand_beside_varied_ones() -> None:
    ids = [str(i) for i in range(30)]
    constant, varied = (Gaps(ids, ids, values, None) for values in (np.ones(30), normal(11, 30)))
    found = intervals([constant, varied, constant])
    assert found[0] == found[2] == (1.0, 1.0, 1.0)
    assert found[1] == intervals([varied])[0]
