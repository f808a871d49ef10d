"""How sure a gain over the unsteered model is: differences on the same prompts, of clusters of prompts and of seeds."""

from collections.abc import Callable, Iterator, Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from steerbench.records.crossed_effects import Crossed, claimed_p, critical, crossed, crossed_p
from steerbench.records.scores import Scores, Table, aligned, by_id, check_same, scores_of

N_RESAMPLES = 10_000
TOLERANCE = 1e-4
"""Scores so near are equal: a model gives equal texts in different batches scores that differ by about 1e-5."""
_ROUNDED = ("reward", "held_out_reward")
"""Scores of a model, which rounds them otherwise in another batch."""
_AT_ONCE = 250_000
"""Numbers of one array of resamples: few enough for the cache of a processor, which is also the fastest."""
_TOGETHER = 200  # differences of one bootstrap, which holds all their resamples several times over
_TAIL = 3.178
"""Bound on P(sum of terms with random signs > x) over that of a normal variable of the same variance, of any terms
and x; Bentkus and Dzindzalieta, A tight Gaussian bound for weighted sums of Rademacher random variables, 2015."""
_SURE = 10  # times
_BITS = 36
"""Of a sum that are kept, which leaves 17 of the 53 for adding as many of them as there are clusters."""


class Interval(NamedTuple):
    """A mean difference with its 95 % interval; None for its ends where there is one cluster, which cannot vary."""

    mean: float
    low: float | None
    high: float | None


class Gaps(NamedTuple):
    """Differences on the same prompts, steered minus unsteered, in the order of the prompts' ids."""

    ids: list[str]
    """An id is there as often as its prompt has responses."""
    groups: list[str]
    values: Any
    """Means over the seeds, (responses,) float64."""
    by_seed: Any
    """Means over the prompts, (seeds, responses per prompt) float64."""
    of_seeds: Any = None
    """Those of each seed, (seeds, responses) float64; None where `seeded` is False and nobody compares two of these."""
    seeded: bool = False
    """Whether another seed may have given another steering, so that seeds are drawn as prompts are."""

    @property
    def testable(self) -> bool:
        """Whether its variance is known: one seed says nothing of what another one would have given."""
        return not self.seeded or len(self.of_seeds) > 1


def paired_interval(
    steered: Sequence[pd.DataFrame], unsteered: Sequence[pd.DataFrame], column: str, n_resamples: int = N_RESAMPLES
) -> Interval:
    """Return the mean difference of a column on the same prompts, with its 95 % interval.

    The tables are the examples of records with the same seeds in the same order; `gaps` and `intervals` say how
    they are compared. Raises SteerbenchError if they do not hold the same prompts.
    """
    return intervals([gaps(steered, unsteered, column)], n_resamples)[0]


class Order(NamedTuple):
    """The prompts of a table in the order of their ids, and of their samples."""

    rows: Any
    """Where each of them stands in the table, (responses,)."""
    ids: list[str]
    groups: list[str]
    samples: list[Any]
    """For each sample which responses are of it, (responses,) bool."""


def order_of(table: Table) -> Order:
    """Return the order in which the prompts of a table, and of all that hold the same prompts, are compared."""
    first = by_id(scores_of(table).table.reset_index(drop=True))
    samples = first["sample"].to_numpy() if "sample" in first else np.zeros(len(first), int)
    of_sample = [samples == k for k in np.unique(samples)]
    return Order(first.index.to_numpy(), list(first["id"]), list(first["group"]), of_sample)


def gaps(
    steered: Sequence[Table],
    unsteered: Sequence[Table],
    column: str,
    *,
    seeded: bool = False,
    order: Order | None = None,
) -> Gaps:
    """Return how much higher a column is on each prompt than without steering: each seed beside its own, then averaged.

    `seeded` says that another seed may give another steering, `order` what `order_of` says of the first unsteered
    table, where that is known: sorting it takes longer than all else. Rewards that differ by at most `TOLERANCE` are
    equal, as in the win rate: that is the rounding of a batch, and would break ties. Raises SteerbenchError if the
    tables do not hold the same prompts.
    """
    like = scores_of(unsteered[0])
    order = order or order_of(like)
    seeds = [
        _values(s, like, order.rows, column) - _values(u, like, order.rows, column)
        for s, u in zip(steered, unsteered, strict=True)
    ]
    if column in _ROUNDED:
        seeds = [settled(row) for row in seeds]
    by_seed = [[float(row[of_sample].mean()) for of_sample in order.samples] for row in seeds]
    rows = np.array(seeds)
    return Gaps(order.ids, order.groups, rows.mean(axis=0), np.array(by_seed), rows, seeded)


def intervals(found: Sequence[Gaps], n_resamples: int = N_RESAMPLES) -> list[Interval]:
    """Return means and 95 % intervals of differences on one set of prompts, in clusters.

    A cluster is a group of prompts that are not independent, such as those about one post. Differences that are not
    `seeded` are averaged over the seeds, and their clusters resampled (BCa), every prompt counting equally; so are
    those of one seed, whose intervals say nothing of other seeds. Where seeds gave different steerings, the interval is
    that of `crossed`. Where nothing varies, both ends are the mean; with one cluster alone they are None. The same
    differences always give the same numbers, whatever stands beside them.
    """
    for one in found:
        if one.ids is not found[0].ids:
            check_same(one.ids, found[0].ids)
    both_ways = [by_seeds(one) for one in found]
    plain = iter(_resampled([one for one, ways in zip(found, both_ways, strict=True) if ways is None], n_resamples))
    return [next(plain) if ways is None else _student(ways) for ways in both_ways]


def by_seeds(one: Gaps) -> Crossed | None:
    """Return mean and variance where seeds are drawn too; None where they are not, or one of them, or one cluster."""
    if not (one.seeded and one.testable):
        return None
    codes = clusters_of(one)
    sums = cluster_sums(one.of_seeds, codes)[None]
    return crossed(sums, np.bincount(codes).astype(float)) if sums.shape[2] > 1 else None


def _student(ways: Crossed) -> Interval:
    mean, error, share = float(ways.mean[0]), sqrt(float(ways.variance[0])), float(ways.share[0])
    half = critical(0.05, share, ways.n_seeds, ways.n_clusters) * error
    return Interval(mean, mean - half, mean + half)


def _resampled(found: Sequence[Gaps], n_resamples: int) -> list[Interval]:
    means = [float(one.values.mean()) for one in found]
    sums, sizes = _clusters(found)
    if len(sizes) == 1:
        return [Interval(mean, None, None) for mean in means]
    varied = [not np.allclose(row / sizes, mean, rtol=1e-9, atol=0) for row, mean in zip(sums, means, strict=True)]
    rows = sums[varied]
    ends = iter(
        [end for i in range(0, len(rows), _TOGETHER) for end in _ends(rows[i : i + _TOGETHER], sizes, n_resamples)]
    )
    return [Interval(mean, *(next(ends) if vary else (mean, mean))) for mean, vary in zip(means, varied, strict=True)]


def p_values(found: Sequence[Gaps], n_resamples: int = N_RESAMPLES) -> list[float]:
    """Return for each difference the two-sided p-value: that steering changes nothing.

    Where seeds gave different steerings it is that of `crossed`, and 1 where there is one seed of them, or one cluster.
    Of the others it is that of a sign-flip test. Without an effect, the differences of a whole cluster could as well
    have the other sign; p is the share of random signs that give a mean at least as far from zero, the signs observed
    among them. So what is tested is that differences are symmetric about zero, which is more than a mean of zero.
    """
    flipped = iter(_flipped([one for one in found if not one.seeded], n_resamples))
    both_ways = [by_seeds(one) for one in found]
    return [
        float(crossed_p(ways)[0]) if ways else 1.0 if one.seeded else next(flipped)
        for one, ways in zip(found, both_ways, strict=True)
    ]


def claim_p_values(found: Sequence[Gaps], p: Sequence[float]) -> list[float]:
    """Return the p-values that claims rest on, from those of `p_values`: where seeds are drawn, see `claimed_p`."""
    both_ways = [by_seeds(one) for one in found]
    return [float(claimed_p(ways)[0]) if ways else plain for ways, plain in zip(both_ways, p, strict=True)]


def _flipped(found: Sequence[Gaps], n_resamples: int) -> list[float]:
    if not found:
        return []
    sums = _addable(_clusters(found)[0])
    as_far = np.ones(len(sums))
    for signs in _signs(sums.shape[1], n_resamples):
        as_far += _as_far(sums, signs)
    return [float(p) for p in as_far / (n_resamples + 1)]


def claims(sums: Any, level: float, known: Any = None) -> Any:
    """Tell which of many differences, (differences, clusters), have a p-value of at most `level` after Holm's method.

    `known` are p-values that need no signs, NaN for the others: those of seeds that gave different steerings. The other
    answers are those of `p_values`, with as many signs as it takes for the smallest p to survive the correction, but
    two kinds of differences are spared most of them. What Holm would not claim with the signs so far, it never will:
    with more signs a p-value that counts them only grows. And a sum of terms with random signs has nearly the tails of
    a normal one, at most `_TAIL` times as heavy: where that bound is `_SURE` times below what Holm asks of the smallest
    p-value, the signs would have to be very unlucky ones to say otherwise.
    """
    n_resamples = max(N_RESAMPLES, round(2 * len(sums) / level))
    deviations = np.sqrt((sums**2).sum(axis=1))
    distances = np.abs(sums.sum(axis=1)) / np.where(deviations > 0, deviations, 1.0)
    sure = distances > NormalDist().inv_cdf(1 - level / len(sums) / 2 / _TAIL / _SURE)
    as_far, sums = np.ones(len(sums)), _addable(sums)
    known = np.full(len(sums), np.nan) if known is None else known
    told = ~np.isnan(known)
    p = np.where(told, known, as_far / (n_resamples + 1))
    for drawn, signs in enumerate(_signs(sums.shape[1], n_resamples)):
        if drawn.bit_count() < 2:  # at 0, 1, 2, 4, ...: sorting all p-values takes longer than a few signs too many
            open_ = np.flatnonzero(~sure & ~told & (_holm(p) <= level))
        if not len(open_):
            break
        as_far[open_] += _as_far(sums[open_], signs)
        p[open_] = as_far[open_] / (n_resamples + 1)
    return _holm(p) <= level


def _signs(n_clusters: int, n_resamples: int) -> Iterator[Any]:
    """Yield random signs, (some of the resamples, clusters), always the same."""
    generator, at_once = np.random.default_rng(0), max(1, _AT_ONCE // n_clusters)
    for start in range(0, n_resamples, at_once):
        size = (min(at_once, n_resamples - start), n_clusters)
        yield 2.0 * generator.integers(0, 2, size, dtype=np.int8) - 1.0


def _as_far(sums: Any, signs: Any) -> Any:
    """Return how many of the signs give each difference, (differences, clusters), a sum as far from zero as its own."""
    found = np.empty(len(sums))
    step = max(1, _AT_ONCE // len(signs))
    for start in range(0, len(sums), step):
        rows = sums[start : start + step]
        drawn = rows @ signs.T
        np.abs(drawn, out=drawn)
        found[start : start + step] = np.count_nonzero(drawn >= np.abs(rows.sum(axis=1, keepdims=True)), axis=1)
    return found


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, by Holm's method: the chance of one false claim stays below alpha."""
    corrected: list[float] = _holm(np.asarray(p, float)).tolist()
    return corrected


def _holm(p: Any) -> Any:
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, np.arange(len(p), 0, -1) * p[order]))
    return corrected


def wilson(rate: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a rate among n prompts. A tie may count one half."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


class Spread(NamedTuple):
    """How much a gain differs between repetitions, in standard deviations; None where that cannot be told."""

    fit: float | None
    """Between fits, were each measured with endless samples."""
    sampling: float | None
    """Between samples of one fit, each of one response per prompt."""


def spread(by_seed: Any, *, sampled: bool) -> Spread:
    """Split the variance of a gain, (seeds, samples), into that between fits and that between samples of a fit.

    Sampling alone is the pooled variance within a fit; what the means of fits vary more than it explains is theirs.
    Greedy responses do not vary; with one sample of each fit the two cannot be told apart.
    """
    n_seeds, n_samples = by_seed.shape
    if sampled and n_samples == 1:
        return Spread(None, None)
    within = float(by_seed.var(axis=1, ddof=1).mean()) if sampled else 0.0
    if n_seeds == 1:
        return Spread(None, sqrt(within))
    between = float(by_seed.mean(axis=1).var(ddof=1)) - within / n_samples
    return Spread(sqrt(max(0.0, between)), sqrt(within))


def standard_error(found: Gaps) -> float | None:
    """Return the standard error of a mean difference, between clusters of prompts and seeds; None for one cluster."""
    if ways := by_seeds(found):
        return sqrt(float(ways.variance[0]))
    sums, sizes = _clusters([found])
    n = len(sizes)
    if n == 1:
        return None
    residuals = sums[0] - sizes * found.values.mean()
    return sqrt(float(residuals @ residuals) * n / (n - 1)) / float(sizes.sum())


def _values(table: Table, like: Scores, order: Any, column: str) -> Any:
    """Return a column in the order of the rows `order` of a table like it."""
    return aligned(table, like).numbers(column)[order]


def settled(differences: Any) -> Any:
    """Return differences of rewards without those that are the rounding of a batch, at most `TOLERANCE`."""
    return np.where(np.abs(differences) <= TOLERANCE, 0.0, differences)


def _clusters(found: Sequence[Gaps]) -> tuple[Any, Any]:
    """Return the sums of the differences in each cluster, (differences, clusters), and its prompts, (clusters,)."""
    if not found:
        return np.empty((0, 1)), np.ones(1)
    codes = clusters_of(found[0])
    return cluster_sums(np.array([one.values for one in found]), codes), np.bincount(codes).astype(float)


def clusters_of(one: Gaps) -> Any:
    """Return the number of each response's cluster, (responses,)."""
    return pd.factorize(np.array(one.groups, dtype=object))[0]


def cluster_sums(values: Any, codes: Any) -> Any:
    """Return the sums of differences, (differences, responses), in each cluster: (differences, clusters)."""
    n = codes.max() + 1
    cells = codes + n * np.arange(len(values))[:, None]
    return np.bincount(cells.ravel(), weights=values.ravel(), minlength=len(values) * n).reshape(len(values), n)


def _ends(sums: Any, sizes: Any, n_resamples: int) -> list[tuple[float, float]]:
    if not len(sums):
        return []
    from scipy.stats import bootstrap  # takes half a second, and a table of the unsteered model alone needs none

    n = len(sizes)
    found = bootstrap(
        (np.arange(n),),
        _ratios(_addable(sums), sizes),
        vectorized=True,
        n_resamples=n_resamples,
        batch=max(1, _AT_ONCE // n),
        rng=np.random.default_rng(0),
    ).confidence_interval
    return list(zip(found.low.tolist(), found.high.tolist(), strict=True))


def _addable(sums: Any) -> Any:
    """Round numbers, each row by itself, so that adding them is exact: any order and any batch gives the same bits.

    Without it, equal resamples could differ in the last bit, and the bootstrap would not count them as equal.
    """
    unit = 2.0 ** (np.frexp(np.abs(sums).max(axis=1, keepdims=True))[1] - _BITS)
    return np.round(sums / unit) * unit


def _ratios(sums: Any, sizes: Any) -> Callable[..., Any]:
    """Return the statistic: numbers of clusters, (..., drawn) -> means over their prompts, (differences, ...).

    How often each cluster was drawn does for all differences at once, which is far cheaper than drawing for each.
    """
    n = len(sizes)

    def statistic(drawn: Any, axis: int = -1) -> Any:
        rows = drawn.reshape(-1, drawn.shape[axis])
        cells = rows + n * np.arange(len(rows))[:, None]
        counts = np.bincount(cells.ravel(), minlength=len(rows) * n).reshape(len(rows), n).astype(float)
        return ((sums @ counts.T) / (counts @ sizes)).reshape(len(sums), *drawn.shape[:-1])

    return statistic
