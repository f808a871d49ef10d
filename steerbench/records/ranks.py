"""Ranks: how many methods are surely better, from the pairs of all methods on the same prompts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from steerbench.records.statistics import Gaps, claims, cluster_sums, clusters_of, settled

LEVEL = 0.05
"""Chance of one false claim among all pairs of methods of a task."""
_AT_ONCE = 1_000_000
"""Differences that are held at once."""


def ranks_of(over_one: Mapping[str, Gaps]) -> dict[str, int]:
    """Return for each method 1 + the number of those that are surely better, on the same prompts and seeds.

    `over_one` says how far the reward of each is from that of one and the same method. Surely: by the sign-flip test of
    `p_values`, corrected for the number of pairs (Holm).
    """
    ranks = np.ones(len(over_one), int)
    if len(over_one) > 1:
        values = np.array([gap.values for gap in over_one.values()])
        above, below = np.triu_indices(len(values), 1)
        sums, means = _between(values, above, below, clusters_of(next(iter(over_one.values()))))
        apart = claims(sums, LEVEL)
        np.add.at(ranks, np.where(means > 0, below, above)[apart], 1)
    return dict(zip(over_one, ranks.tolist(), strict=True))


def _between(values: Any, above: Any, below: Any, codes: Any) -> tuple[Any, Any]:
    """Return how much higher one method is than another, for all pairs: sums of each cluster, and means of prompts."""
    sums, means = np.empty((len(above), codes.max() + 1)), np.empty(len(above))
    step = max(1, _AT_ONCE // len(codes))
    for start in range(0, len(above), step):
        pairs = slice(start, start + step)
        gaps = settled(values[above[pairs]] - values[below[pairs]])
        sums[pairs], means[pairs] = cluster_sums(gaps, codes), gaps.mean(axis=1)
    return sums, means
