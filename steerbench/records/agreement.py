"""Agreement of two scores: whether the responses that one of them prefers are those that the other does.

A guide and the truth may agree on what the unsteered model writes, and hardly at all on what a steering makes of it: a
reward model is trusted where it has not been looked at. The mean gains do not show that.
"""

from math import atanh, sqrt, tanh
from typing import Any

import numpy as np

from steerbench.records.scores import Table, scores_of
from steerbench.records.statistics import Interval


def agreement(table: Table, one: str, other: str) -> float | None:
    """Return the rank correlation (Spearman, ties with their mean rank) of two scores over the responses of a table.

    None where one of them is not there, is not a number for every response, or does not vary.
    """
    scores = [scores_of(table).numbers(name) for name in (one, other)]
    if not all(score is not None and np.isfinite(score).all() for score in scores):
        return None
    ranks = [_ranks(score) for score in scores]
    return float(np.corrcoef(ranks)[0, 1]) if all(len(rank) and np.ptp(rank) > 0 for rank in ranks) else None


def of_ranks(correlation: float, n: int) -> Interval:
    """Return Spearman's rank correlation over n pairs with its interval, which takes four of them.

    Fisher's, with the variance 1.06 / (n - 3) for ranks (Fieller, Hartley and Pearson, 1957).
    """
    if n < 4 or abs(correlation) > 1 - 1e-9:
        return Interval(correlation, None, None)
    middle, width = atanh(correlation), 1.96 * sqrt(1.06 / (n - 3))
    return Interval(correlation, tanh(middle - width), tanh(middle + width))


def _ranks(score: Any) -> Any:
    """Return the rank of each number, from 1, (responses,); of equal ones the mean of their ranks."""
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
