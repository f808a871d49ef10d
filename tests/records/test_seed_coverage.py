"""Simulated studies of prompts and seeds: how often intervals hold the truth, and chance is called an effect.

`python tests/records/test_seed_coverage.py` prints the table of docs/statistics.md.
"""

import sys
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from steerbench.records.crossed_effects import critical, crossed, crossed_p, tail
from steerbench.records.statistics import Gaps, claim_p_values, intervals, p_values, standard_error

SEEDS, PROMPTS = (3, 5), (60, 128, 500)
SPREADS = tuple(product((0.0, 0.05, 0.15, 0.5), (0.0, 0.5, 1.5)))
"""Standard deviations between seeds and between prompts, beside a residual of 1."""


class World(NamedTuple):
    """What studies are drawn from; the truth is 0."""

    seeds: int
    prompts: int
    seed_sd: float
    prompt_sd: float
    skewed: bool = False
    """Whether prompts and residuals are exponential instead of normal."""


def studies(world: World, n: int, generator: np.random.Generator) -> Any:
    """Return differences of `n` studies, (studies, seeds, prompts)."""

    def noise(*shape: int) -> Any:
        return generator.exponential(size=shape) - 1 if world.skewed else generator.normal(size=shape)

    of_seeds = world.seed_sd * generator.normal(size=(n, world.seeds, 1))
    return of_seeds + world.prompt_sd * noise(n, 1, world.prompts) + noise(n, world.seeds, world.prompts)


def p_of(world: World, n: int) -> Any:
    """Return the p-values of studies; the 95 % interval of one holds the truth where its p is above 0.05."""
    generator, sizes, found = np.random.default_rng(1), np.ones(world.prompts), []
    for start in range(0, n, 500):
        found.append(crossed_p(crossed(studies(world, min(500, n - start), generator), sizes)))
    return np.concatenate(found)


def averaged_p(world: World, n: int) -> Any:
    """Return p-values that take the mean of the seeds for the truth about each prompt."""
    return ttest_1samp(studies(world, n, np.random.default_rng(1)).mean(axis=1), 0, axis=1).pvalue


@pytest.mark.parametrize("spreads", [(0.0, 0.0), (0.0, 1.5), (0.15, 0.5), (0.5, 0.5)])
def test_intervals_of_three_seeds_hold_the_truth(spreads: tuple[float, float]) -> None:
    """Of 2000 studies; one standard error of a share of 5 % is half a percent."""
    assert 0.93 <= (p_of(World(3, 60, *spreads), 2000) > 0.05).mean() <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_hold_the_truth(seeds: int, prompts: int, skewed: bool) -> None:
    for spreads in SPREADS:
        world = World(seeds, prompts, *spreads, skewed)
        assert 0.93 <= (p_of(world, 10_000) > 0.05).mean() <= 0.97, world


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("prompts", PROMPTS)
def test_one_in_twenty_comparisons_of_a_method_with_itself_is_an_effect(seeds: int, prompts: int) -> None:
    """With a seed variance and without: 5 %, give or take 1. At 0.001, as Holm's method may ask, below 0.003."""
    for spreads in SPREADS:
        p = p_of(World(seeds, prompts, *spreads), 20_000)
        assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.01 + 0.003), spreads
        assert (p <= 0.001).mean() <= 0.003, spreads


def test_without_the_seeds_as_a_factor_chance_is_called_an_effect() -> None:
    world = World(3, 128, 0.3, 0.5)
    assert (averaged_p(world, 1000) <= 0.05).mean() > 0.3
    assert (p_of(world, 1000) <= 0.05).mean() < 0.07


# The same numbers through the differences of records


def gap(rows: Any, *, seeded: bool = True, groups: Any = None) -> Gaps:
    ids = [f"p{i:04d}" for i in range(rows.shape[1])]
    return Gaps(ids, ids if groups is None else list(groups), rows.mean(0), rows.mean(1)[:, None], rows, seeded)


def drawn(seed: int) -> Any:
    return studies(World(3, 60, 0.3, 0.5), 1, np.random.default_rng(seed))[0] + 0.4


def test_mean_squares_are_those_of_a_two_way_analysis_of_variance() -> None:
    """Written out as sums of squares."""
    rows = drawn(0)
    s, n = rows.shape
    seeds, prompts, mean = rows.mean(1), rows.mean(0), rows.mean()
    rest = sum((rows[i, j] - seeds[i] - prompts[j] + mean) ** 2 for i in range(s) for j in range(n)) / (s - 1) / (n - 1)
    of_seeds = n * sum((seeds - mean) ** 2) / (s - 1)
    of_prompts = s * sum((prompts - mean) ** 2) / (n - 1)
    found = crossed(rows[None], np.ones(n))
    assert found.mean == pytest.approx([mean])
    assert found.variance == pytest.approx([(of_seeds + max(0, of_prompts - rest)) / s / n])
    assert found.between == pytest.approx([(of_seeds - rest) / s / n])
    assert standard_error(gap(rows)) == pytest.approx(found.variance[0] ** 0.5)


def test_an_interval_ends_where_its_p_is_five_percent() -> None:
    rows = drawn(1)
    (interval,) = intervals([gap(rows)])
    assert interval.low is not None
    assert interval.high is not None
    for end in (interval.low, interval.high):
        assert p_values([gap(rows - end)]) == [pytest.approx(0.05)]


def test_prompts_of_one_cluster_count_as_one() -> None:
    rows = drawn(2)
    twice = gap(np.repeat(rows, 2, axis=1), groups=np.repeat(np.arange(60), 2))
    for of_twice, of_once in zip(intervals([twice])[0], intervals([gap(rows)])[0], strict=True):
        assert of_twice == pytest.approx(of_once)


def test_seeds_that_change_nothing_are_no_factor() -> None:
    """Greedy responses of one steering: three equal seeds say what one does, and no less surely than that."""
    once = drawn(3)[:1]
    assert intervals([gap(np.repeat(once, 3, axis=0), seeded=False)]) == intervals([gap(once, seeded=False)])
    assert p_values([gap(np.repeat(once, 3, axis=0), seeded=False)]) == p_values([gap(once, seeded=False)])


def test_one_seed_of_several_has_no_test() -> None:
    sure = drawn(4)[:1] + 100
    assert not gap(sure).testable
    assert p_values([gap(sure)]) == [1.0]
    assert p_values([gap(sure, seeded=False)])[0] < 0.001
    assert intervals([gap(sure)]) == intervals([gap(sure, seeded=False)])


def test_what_is_beside_them_changes_no_number() -> None:
    found = [gap(drawn(seed), seeded=seed % 2 == 0) for seed in range(4)]
    assert intervals(found) == [intervals([one])[0] for one in found]
    assert p_values(found) == [p_values([one])[0] for one in found]


def test_seeds_that_agree_by_luck_make_no_claim_surer() -> None:
    """Their interval may be narrower than that of the prompts; what is claimed is at most what the prompts say."""
    rows = np.random.default_rng(5).normal(size=(3, 60))
    lucky = gap(rows - rows.mean(axis=1, keepdims=True) + 0.12)
    (p,) = p_values([lucky])
    assert p < 1e-6
    of_prompts = ttest_1samp(lucky.values, 0).pvalue
    assert claim_p_values([lucky], [p]) == [pytest.approx(of_prompts)]
    assert of_prompts > 0.01


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_what_never_varies_is_sure(value: float) -> None:
    constant = gap(np.full((3, 20), value))
    assert intervals([constant]) == [(value, value, value)]
    assert p_values([constant]) == [1.0 if value == 0 else 0.0]


def test_seeds_alone_are_students_and_prompts_alone_too() -> None:
    for share, degrees in ((1.0, 2), (0.0, 59)):
        values = np.random.default_rng(0).normal(1, 1, degrees + 1)
        wanted = ttest_1samp(values, 0)
        assert float(tail(abs(wanted.statistic), share, 3, 60)) == pytest.approx(wanted.pvalue)
        assert float(tail(critical(0.01, share, 3, 60), share, 3, 60)) == pytest.approx(0.01)


def main() -> None:
    """Print the table of docs/statistics.md."""
    for seeds, prompts in product((2, *SEEDS), PROMPTS):
        told = [(p_of(World(seeds, prompts, *spreads), 20_000) > 0.05).mean() for spreads in SPREADS]
        naive = [(averaged_p(World(seeds, prompts, *spreads), 5_000) > 0.05).mean() for spreads in SPREADS]
        shown = [f"{100 * min(rates):.1f} to {100 * max(rates):.1f}" for rates in (told, naive)]
        sys.stdout.write(f"| {seeds} | {prompts} | {' | '.join(shown)} |\n")


if __name__ == "__main__":
    main()
