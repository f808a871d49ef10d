"""Agreement of two scores: whether the responses that one of them prefers are those that the other does.

A guide and the truth may agree on what the unsteered model writes, and hardly at all on what a steering makes of it: a
reward model is trusted where it has not been looked at. The mean gains do not show that.
"""

from typing import Any

import numpy as np

from steerbench.records.scores import Table, scores_of


def agreement(table: Table, one: str, other: str) -> float | None:
    """Return the rank correlation (Spearman, ties with their mean rank) of two scores over the responses of a table.

    None where one of them is not there, is not a number for every response, or does not vary.
    """
    scores = [scores_of(table).numbers(name) for name in (one, other)]
    if not all(score is not None and np.isfinite(score).all() for score in scores):
        return None
    ranks = [_ranks(score) for score in scores]
    return float(np.corrcoef(ranks)[0, 1]) if all(len(rank) and np.ptp(rank) > 0 for rank in ranks) else None


def _ranks(score: Any) -> Any:
    """Return the rank of each number, from 1, (responses,); of equal ones the mean of their ranks."""
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
