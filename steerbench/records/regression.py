"""Least squares of two coefficients, with intervals: prompts resampled by their clusters."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from steerbench.records.statistics import N_RESAMPLES, cluster_sums

_AT_ONCE = 1_000_000
"""Numbers of one array of resamples."""


def moments(first: Any, second: Any, target: Any, codes: Any) -> Any:
    """Return what a fit of `target` by a * first + b * second needs of each cluster, (clusters, 5).

    All are (observations,); `codes` are the numbers of their clusters, from 0. Moments of several sets of observations
    may be added.
    """
    products = [first * first, first * second, second * second, first * target, second * target]
    return cluster_sums(np.array(products, float), codes).T


def coefficients(sums: Any) -> Any:
    """Return a and b of least squares, (..., 2), from moments summed over clusters, (..., 5).

    b is 0 where `second` is 0 throughout. Both are NaN where the one regressor is a multiple of the other, because no
    data could tell them apart then.
    """
    aa, ab, bb, ay, by = np.moveaxis(np.asarray(sums, float), -1, 0)
    determinant = aa * bb - ab * ab
    alone, known = (bb == 0) & (aa > 0), determinant > 1e-9 * aa * bb
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.stack([bb * ay - ab * by, aa * by - ab * ay], -1) / determinant[..., None]
        first = np.stack([ay / aa, np.zeros_like(aa)], -1)
    return np.where(alone[..., None], first, np.where(known[..., None], both, np.nan))


def resampled_coefficients(found: Sequence[Any], n_resamples: int = N_RESAMPLES) -> Any:
    """Return a and b of each fit in resamples of the clusters, (resamples, fits, 2), always from the same draws.

    `found` are the moments of each fit, all of the same clusters. A resample draws as many clusters as there are.
    """
    n, generator = len(found[0]), np.random.default_rng(0)
    stacked = np.stack(found, 1).reshape(n, -1)  # (clusters, fits * 5)
    at_once = max(1, _AT_ONCE // n)
    drawn = []
    for start in range(0, n_resamples, at_once):
        counts = generator.multinomial(n, np.full(n, 1 / n), min(at_once, n_resamples - start)).astype(float)
        drawn.append(coefficients((counts @ stacked).reshape(len(counts), len(found), 5)))
    return np.concatenate(drawn)


def interval_ends(draws: Any) -> tuple[float, float]:
    """Return the 95 % percentile interval of draws, (resamples,); those that are NaN do not count."""
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)
