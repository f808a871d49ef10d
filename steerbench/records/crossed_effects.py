"""The variance of a mean over prompts and seeds, both drawn: a two-way layout with crossed random effects.

A difference d of seed s on prompt p is mu + a_s + b_p + e_sp. Averaging over three seeds makes no more of the a_s than
three, however many prompts there are. The mean squares of a two-way analysis of variance estimate the variance of the
mean; `docs/statistics.md` has the formulas, and how often the intervals held the truth in simulated studies.
"""

from typing import Any, NamedTuple

import numpy as np

_WEIGHT = 1.25
"""Exponent of the seeds' share of the variance, by simulation: with 1, too many intervals hold the truth, with 1.5, too
few."""


class Crossed(NamedTuple):
    """Means over seeds and prompts, each an array (differences,), and what is known of their variance."""

    mean: Any
    variance: Any
    """Of the mean."""
    over_clusters: Any
    """Of the mean, were the seeds the only ones: from the clusters alone."""
    between: Any
    """The part of it that more prompts would not lower."""
    share: Any
    """The mean square of the seeds in it, from 0 to 1: how much of it is known from the seeds alone."""
    n_seeds: int
    n_clusters: int


def crossed(sums: Any, sizes: Any) -> Crossed:
    """Return means and variances of differences, from their sums for each seed and cluster of prompts.

    `sums` are (differences, seeds, clusters) with at least two of the last two, `sizes` the prompts of each cluster.
    Prompts count equally, so the mean is a ratio, which is linearised: clusters enter as what they are above it.
    """
    _, n_seeds, n_clusters = sums.shape
    mean = sums.sum(axis=(1, 2)) / (n_seeds * sizes.sum())
    cells = (sums - mean[:, None, None] * sizes) / sizes.mean()
    of_seeds, of_clusters = cells.mean(axis=2), cells.mean(axis=1)
    rest = cells - of_seeds[:, :, None] - of_clusters[:, None, :]
    seeds = n_clusters * (of_seeds**2).sum(axis=1) / (n_seeds - 1)
    clusters = n_seeds * (of_clusters**2).sum(axis=1) / (n_clusters - 1)
    residual = (rest**2).sum(axis=(1, 2)) / ((n_seeds - 1) * (n_clusters - 1))
    total = seeds + np.maximum(0.0, clusters - residual)
    cells_of_all = n_seeds * n_clusters
    return Crossed(
        mean,
        total / cells_of_all,
        clusters / cells_of_all,
        np.maximum(0.0, seeds - residual) / cells_of_all,
        np.divide(seeds, total, out=np.zeros_like(total), where=total > 0),
        n_seeds,
        n_clusters,
    )


def tail(distance: Any, share: Any, n_seeds: int, n_clusters: int) -> Any:
    """Return the two-sided p-value of a mean that is `distance` standard errors from zero.

    It is that of Student's t with the degrees of freedom of the seeds, and with those of the clusters, mixed by the
    seeds' share of the variance. The first has far heavier tails: seeds are few.
    """
    from scipy.special import stdtr

    weight = share**_WEIGHT
    by_seeds, by_clusters = stdtr(n_seeds - 1, -distance), stdtr(n_clusters - 1, -distance)
    return 2 * (weight * by_seeds + (1 - weight) * by_clusters)


def critical(alpha: float, share: float, n_seeds: int, n_clusters: int) -> float:
    """Return how many standard errors from zero a mean has a p-value of `alpha`."""
    from scipy.optimize import brentq
    from scipy.special import stdtrit

    ends = [float(stdtrit(n - 1, 1 - alpha / 2)) for n in (n_clusters, n_seeds)]
    low, high = 0.99 * min(ends), 1.01 * max(ends)
    return float(brentq(lambda t: float(tail(t, share, n_seeds, n_clusters)) - alpha, low, high, xtol=1e-12))


def crossed_p(found: Crossed) -> Any:
    """Return the two-sided p-values of means, (differences,): 1 for a mean of zero, 0 for one that never varies."""
    return tail(_distance(found.mean, found.variance), found.share, found.n_seeds, found.n_clusters)


def claimed_p(found: Crossed) -> Any:
    """Return what a claim rests on: p-values, but none smaller than that of the clusters alone.

    Of three seeds that differ in nothing but noise some agree by luck, better than the noise on each prompt allows.
    Such a mean has a small variance, and its t has few degrees of freedom, which is right on average over studies; it
    makes nothing surer in this one.
    """
    over_clusters = tail(_distance(found.mean, found.over_clusters), 0.0, found.n_seeds, found.n_clusters)
    return np.maximum(crossed_p(found), over_clusters)


def _distance(mean: Any, variance: Any) -> Any:
    """Return how many standard errors means are from zero."""
    error, never = np.sqrt(variance), np.where(mean == 0, 0.0, np.inf)
    return np.divide(np.abs(mean), error, out=never, where=error > 0)
