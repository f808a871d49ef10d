"""Ranks: how many methods are surely better, from the pairs of all methods on the same prompts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from steerbench.records.crossed_effects import claimed_p, crossed
from steerbench.records.statistics import Gaps, claims, cluster_sums, clusters_of, settled

LEVEL = 0.05
"""Chance of one false claim among all pairs of methods of a task."""
_AT_ONCE = 1_000_000
"""Differences that are held at once."""


def ranks_of(over_one: Mapping[str, Gaps]) -> dict[str, int]:
    """Return for each method 1 + the number of those that are surely better, on the same prompts and seeds.

    `over_one` says how far the reward of each is from that of one and the same method. Surely: by `claim_p_values`
    of the pairs, corrected for the number of pairs (Holm). Seeds count as drawn where they gave one of the two methods
    different steerings.
    """
    ranks = np.ones(len(over_one), int)
    if len(over_one) > 1:
        found = list(over_one.values())
        above, below = np.triu_indices(len(found), 1)
        codes = clusters_of(found[0])
        sums, means = _between(np.array([one.values for one in found]), above, below, codes)
        apart = claims(sums, LEVEL, _known(found, above, below, codes))
        np.add.at(ranks, np.where(means > 0, below, above)[apart], 1)
    return dict(zip(over_one, ranks.tolist(), strict=True))


def _between(values: Any, above: Any, below: Any, codes: Any) -> tuple[Any, Any]:
    """Return how much higher one method is than another, for all pairs: sums of each cluster, and means of prompts."""
    sums, means = np.empty((len(above), codes.max() + 1)), np.empty(len(above))
    for pairs in _parts(len(above), len(codes)):
        gaps = settled(values[above[pairs]] - values[below[pairs]])
        sums[pairs], means[pairs] = cluster_sums(gaps, codes), gaps.mean(axis=1)
    return sums, means


def _known(found: Sequence[Gaps], above: Any, below: Any, codes: Any) -> Any:
    """Return the p-values of the pairs that seeds are drawn for, NaN for the others."""
    seeded = np.array([one.seeded for one in found])
    which = np.flatnonzero(seeded[above] | seeded[below])
    p = np.full(len(above), np.nan)
    if not len(which):
        return p
    values, sizes = np.array([one.of_seeds for one in found]), np.bincount(codes).astype(float)
    n_seeds, n_clusters = values.shape[1], len(sizes)
    if n_seeds == 1 or n_clusters == 1:
        p[which] = 1.0
        return p
    for part in _parts(len(which), len(codes) * n_seeds):
        pairs = which[part]
        gaps = settled(values[above[pairs]] - values[below[pairs]]).reshape(-1, len(codes))
        p[pairs] = claimed_p(crossed(cluster_sums(gaps, codes).reshape(len(pairs), n_seeds, n_clusters), sizes))
    return p


def _parts(n: int, size: int) -> Iterator[slice]:
    """Yield parts of `n` pairs of so many differences each."""
    step = max(1, _AT_ONCE // size)
    for start in range(0, n, step):
        yield slice(start, start + step)
