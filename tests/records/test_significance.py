"""p-values, corrections, rates, seeds and power: against theory, scipy and simulation."""

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_records import make
from scipy.stats import binomtest, permutation_test, ttest_1samp
from typer.testing import Result

from steerbench import Record, SteerbenchError, Store
from steerbench.records.power import power_table
from steerbench.records.statistics import Gaps, gaps, holm, p_values, spread, standard_error, wilson


def gap(values: Any, groups: Any = None) -> Gaps:
    ids = [f"p{i:04d}" for i in range(len(values))]
    return Gaps(ids, ids if groups is None else list(groups), np.asarray(values, float), np.zeros((1, 1)))


def normal(seed: int, *shape: int, mean: float = 0.0, sd: float = 1.0) -> Any:
    return np.random.default_rng(seed).normal(mean, sd, shape)


# p-values


def test_p_is_that_of_scipy_and_of_student() -> None:
    values = normal(0, 80, mean=0.25)
    (p,) = p_values([gap(values)])
    exact = permutation_test(
        (values, np.zeros(80)), lambda x, y: (x - y).mean(), permutation_type="samples", n_resamples=10_000, rng=1
    )
    assert p == pytest.approx(exact.pvalue, abs=0.01)
    assert p == pytest.approx(ttest_1samp(values, 0).pvalue, abs=0.01)


def test_all_signs_of_a_few_prompts_are_counted_exactly() -> None:
    """Of the 2^3 signs of 1, 2, 4 two give a mean as far from zero as all plus: all plus and all minus."""
    (p,) = p_values([gap([1.0, 2.0, 4.0])], n_resamples=100_000)
    assert p == pytest.approx(0.25, abs=0.005)


def test_a_cluster_flips_as_one() -> None:
    """Forty answers about two posts are no more evidence than two: each of the four pairs of signs is as far."""
    (p,) = p_values([gap(np.ones(40), np.repeat(["a", "b"], 20))])
    assert p == pytest.approx(0.5, abs=0.02)


def test_no_difference_has_p_one_and_a_sure_one_the_smallest() -> None:
    assert p_values([gap(np.zeros(50)), gap(np.ones(50))]) == [1.0, pytest.approx(1 / 10_001)]
    assert p_values([]) == []


def test_p_is_uniform_without_an_effect() -> None:
    p = np.array(p_values([gap(row) for row in normal(1, 400, 60)], n_resamples=2000))
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=3 * sqrt(level * (1 - level) / 400))


def test_what_is_beside_it_changes_no_p() -> None:
    found = [gap(normal(seed, 50, mean=0.2)) for seed in range(5)]
    assert p_values(found) == [p_values([one])[0] for one in found]


def test_holm_by_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    p = normal(2, 30) ** 2
    p = p / p.max()
    corrected = holm(list(p))
    for alpha in (0.01, 0.05, 0.3):  # step down: reject while the smallest is below alpha over the number left
        rejected, left = set(), sorted(range(30), key=lambda i: p[i])
        while left and p[left[0]] <= alpha / len(left):
            rejected.add(left.pop(0))
        assert {i for i in range(30) if corrected[i] <= alpha} == rejected


# Rates


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (130, 256), (1, 1)])
def test_rates_have_the_interval_of_scipy(k: int, n: int) -> None:
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_half_a_win_lies_between() -> None:
    low, high = wilson(2.5 / 10, 10)
    assert wilson(0.2, 10)[0] < low < wilson(0.3, 10)[0]
    assert wilson(0.2, 10)[1] < high < wilson(0.3, 10)[1]


# Seeds


def test_variances_of_fits_and_samples_are_told_apart() -> None:
    """Many fits of variance 4, each with samples of variance 9."""
    fits = normal(3, 4000, 1, sd=2.0)
    fit, sampling = spread(fits + normal(4, 4000, 3, sd=3.0), sampled=True)
    assert fit == pytest.approx(2.0, rel=0.1)
    assert sampling == pytest.approx(3.0, rel=0.05)
    none, same = spread(np.zeros((4000, 1)) + normal(4, 4000, 3, sd=3.0), sampled=True)
    assert none is not None
    assert none < 0.3
    assert same == sampling


def test_what_cannot_be_told_is_none() -> None:
    values = np.array([[1.0], [3.0]])
    assert list(spread(values, sampled=False)) == pytest.approx([sqrt(2), 0.0])
    assert spread(values, sampled=True) == (None, None)
    assert spread(values[:1], sampled=False) == (None, 0.0)
    fit, sampling = spread(np.array([[1.0, 3.0]]), sampled=True)
    assert fit is None
    assert sampling == pytest.approx(sqrt(2))


def table(values: Any, samples: int = 1) -> pd.DataFrame:
    """Return rewards of some samples of each of the prompts, in the order of a record: one sample after the other."""
    n = len(values) // samples
    ids = [f"p{i:04d}" for i in range(n)] * samples
    return pd.DataFrame({"id": ids, "group": ids, "sample": np.repeat(range(samples), n), "reward": values})


def test_samples_are_compared_with_their_own_and_clustered_by_prompt() -> None:
    steered, unsteered = (normal(seed, 2, 50) for seed in (5, 6))
    found = gaps([table(steered.ravel(), 2)], [table(unsteered.ravel(), 2)], "reward")
    assert found.ids == [f"p{i:04d}" for i in range(50) for _ in range(2)]
    assert found.values == pytest.approx((steered - unsteered).T.ravel())
    assert found.by_seed == pytest.approx((steered - unsteered).mean(1)[None])
    shuffled = table(steered.ravel(), 2).sample(frac=1, random_state=0)
    assert gaps([shuffled], [table(unsteered.ravel(), 2)], "reward").values == pytest.approx(found.values)


# Power


def test_the_standard_error_is_that_of_independent_clusters() -> None:
    values = normal(7, 500, sd=2.0)
    assert standard_error(gap(values)) == pytest.approx(values.std() / sqrt(499), rel=1e-6)
    whole = normal(8, 100, sd=2.0)
    clustered = gap(np.repeat(whole, 5), np.repeat(np.arange(100), 5))
    assert standard_error(clustered) == pytest.approx(whole.std() / sqrt(99), rel=1e-6)


def records(sd: float, n: int = 200) -> list[Record]:
    """Return records of the unsteered model and of one method, whose differences vary by `sd`."""
    plain = table(np.zeros(n))
    steered = plain.assign(reward=normal(9, n, mean=0.1, sd=sd))
    return [replace(make("unsteered"), examples=plain), replace(make("caa"), examples=steered)]


def test_one_post_alone_has_no_standard_error(tmp_path: Path) -> None:
    assert standard_error(gap(normal(7, 8), np.zeros(8))) is None
    alone = [replace(r, examples=r.examples.assign(group="one")) for r in records(1.5)]
    with pytest.raises(SteerbenchError, match="differing over several posts or openings"):
        power_table(alone, "reward", 0.4)


def test_as_many_prompts_as_needed_see_the_difference_in_four_of_five_studies() -> None:
    (row,) = power_table(records(1.5), "reward", 0.4).to_dict("records")
    n = row["n_needed"]
    studies = [gap(normal(seed, n, mean=0.4, sd=row["sd"])) for seed in range(400)]
    seen = np.mean([p <= 0.05 for p in p_values(studies, n_resamples=2000)])
    assert seen == pytest.approx(0.8, abs=0.06)
    assert (row["task"], row["method"], row["n_examples"]) == ("shp", "caa", 200)


def test_the_smallest_difference_is_that_of_the_prompts_measured() -> None:
    (row,) = power_table(records(1.5), "reward", 0.4).to_dict("records")
    (again,) = power_table(records(1.5), "reward", row["smallest"]).to_dict("records")
    assert again["n_needed"] == pytest.approx(row["n_examples"], abs=1)
    (sure,) = power_table(records(1.5), "reward", 0.4, power=0.95, alpha=0.01).to_dict("records")
    assert sure["n_needed"] > 2 * row["n_needed"]


def test_more_prompts_do_not_help_against_few_seeds() -> None:
    found = []
    for seed, shift in enumerate((-0.3, 0.0, 0.4)):
        plain, steered = records(1.0)
        told = steered.examples.assign(reward=normal(seed, 200, mean=0.5) + shift)
        found += [replace(plain, seed=seed), replace(steered, seed=seed, steering=str(seed), examples=told)]
    (row,) = power_table(found, "reward", 0.3).to_dict("records")
    assert pd.isna(row["n_needed"])
    assert row["smallest"] > row["smallest_2x"] > row["smallest_4x"] > 0.9 * row["smallest"] > 0.3
    (more,) = power_table(found, "reward", row["smallest_2x"]).to_dict("records")
    assert more["n_needed"] == pytest.approx(400, abs=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"difference": 0.0}, "must be a number above 0"),
        ({"difference": float("nan")}, "must be a number above 0"),
        ({"difference": float("inf")}, "must be a number above 0"),
        ({"metric": "response"}, "no record has response"),
        ({"power": 1.0}, "must lie between 0 and 1"),
        ({"alpha": 0.0}, "must lie between 0 and 1"),
        ({"power": 0.01}, "power above alpha"),
        ({"metric": "gold"}, "no record has gold, differing over several posts or openings, beside an unsteered one"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SteerbenchError, match=message):
        power_table(records(1.0), **{"metric": "reward", "difference": 0.1, **options})


def test_more_prompts_see_smaller_differences() -> None:
    (row,) = power_table(records(1.5), "reward").to_dict("records")
    assert "n_needed" not in row
    for times, name in ((1, "smallest"), (2, "smallest_2x"), (4, "smallest_4x")):
        (again,) = power_table(records(1.5), "reward", row[name]).to_dict("records")
        assert again["n_needed"] == pytest.approx(times * row["n_examples"], abs=1)
        assert again.items() > row.items()


def test_the_command_shows_a_table(cli: Callable[..., Result], tmp_path: Path) -> None:
    for record in records(1.5):
        Store(tmp_path).write(record)
    done = cli("power", tmp_path, "--difference", "0.4")
    assert done.exit_code == 0, done.stderr
    (row,) = power_table(records(1.5), "reward", 0.4).to_dict("records")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("caa"))
    assert line.split() == ["caa", f"{row['sd']:.3f}", "200", str(row["n_needed"]), f"{row['smallest']:.3f}"]
    assert done.stdout.splitlines()[-1] == (
        "prompts needed: to see a true difference of 0.4 in reward in 80% of studies at the 0.05 level; smallest: the "
        "difference that as many prompts as measured would find with the same chance."
    )


def test_the_command_says_what_can_be_seen_with_what_there_is(cli: Callable[..., Result], tmp_path: Path) -> None:
    for record in records(1.5):
        Store(tmp_path).write(record)
    done = cli("power", tmp_path, "--power", "0.9")
    assert done.exit_code == 0, done.stderr
    (row,) = power_table(records(1.5), "reward", power=0.9).to_dict("records")
    cells = ["caa", *(f"{row[name]:.3f}" for name in ("sd", "smallest", "smallest_2x", "smallest_4x"))]
    title, heads, _, line, _, told = done.stdout.splitlines()
    assert title.strip() == "shp"
    assert heads.split() == ["method", "SD", "prompts", "smallest", "2", "×", "4", "×"]
    assert line.split() == [*cells[:2], "200", *cells[2:]]
    assert told == (
        "smallest: the true difference in reward that as many prompts as measured find in 90% of studies at the 0.05 "
        "level; 2 ×, 4 ×: that many times the prompts. How many a difference takes: --difference."
    )
