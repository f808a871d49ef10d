"""Ranks are those of a test of each pair, written out; with many methods they take no longer than they must."""

from itertools import combinations

import numpy as np
import pytest

from steerbench.records.ranks import LEVEL, ranks_of
from steerbench.records.statistics import N_RESAMPLES, TOLERANCE, Gaps, claims, holm, p_values


def slow_ranks(over_one: dict[str, Gaps]) -> dict[str, int]:
    """Each pair by itself: its differences, its p-value with all signs, and Holm's method over all of them."""
    pairs = list(combinations(over_one, 2))
    apart = []
    for a, b in pairs:
        gap = over_one[a].values - over_one[b].values
        apart.append(over_one[a]._replace(values=np.where(np.abs(gap) <= TOLERANCE, 0.0, gap)))
    enough = max(N_RESAMPLES, round(2 * len(pairs) / LEVEL))
    ranks = dict.fromkeys(over_one, 1)
    for (a, b), gap, p in zip(pairs, apart, holm(p_values(apart, enough)), strict=True):
        if p <= LEVEL:
            ranks[b if gap.values.mean() > 0 else a] += 1
    return ranks


def made(n_methods: int, n: int = 36, per_cluster: int = 2, spread: float = 0.5, seed: int = 0) -> dict[str, Gaps]:
    """Return methods whose rewards lie apart, some of them twins but for the rounding of a batch."""
    generator = np.random.default_rng(seed)
    ids, groups = [f"p{i}" for i in range(n)], [f"g{i // per_cluster}" for i in range(n)]
    rows = generator.normal(0, spread, (n_methods, 1)) + generator.normal(0, 0.7, (n_methods, n))
    rows[1::5] = rows[: len(rows[1::5])] + 1e-5
    return {f"m{i}": Gaps(ids, groups, row, row[None, :1]) for i, row in enumerate(rows)}


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("per_cluster", [1, 3, 36])
def test_ranks_are_those_of_each_pair_by_itself(spread: float, per_cluster: int) -> None:
    methods = made(12, spread=spread, per_cluster=per_cluster)
    ranks = ranks_of(methods)
    assert ranks == slow_ranks(methods)
    assert all(isinstance(rank, int) for rank in ranks.values())
    if spread == 0.0 or per_cluster == 36:
        assert set(ranks.values()) == {1}
    if spread == 3.0 and per_cluster < 36:
        assert len(set(ranks.values())) > 5


def test_twins_have_one_rank() -> None:
    ranks = ranks_of(made(12, spread=3.0))
    assert ranks["m1"] == ranks["m0"]


def test_none_and_one_method_need_no_test() -> None:
    assert ranks_of({}) == {}
    assert ranks_of(made(1)) == {"m0": 1}


def test_claims_are_those_of_p_values_after_holm() -> None:
    """Between surely apart and surely not: where the signs decide, and which are spared them must not show."""
    generator = np.random.default_rng(3)
    values = generator.normal(0, 1, (150, 40)) + np.linspace(0, 1.2, 150)[:, None]
    found = [Gaps([""] * 40, [str(i) for i in range(40)], row, row[None, :1]) for row in values]
    expected = np.array(holm(p_values(found, max(N_RESAMPLES, round(2 * 150 / LEVEL))))) <= LEVEL
    assert list(claims(values, LEVEL)) == list(expected)
    assert 20 < expected.sum() < 130
