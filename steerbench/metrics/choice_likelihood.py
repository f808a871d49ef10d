"""What the log-probabilities of given answers come to: the likeliest one, and the share of the right ones."""

from collections.abc import Sequence
from math import exp, fsum, log


def likeliest_is_right(log_probs: Sequence[float], right: Sequence[bool]) -> float:
    """Return 1 where the answer with the highest log-probability is right, its share of a tie (MC1, accuracy)."""
    best = [ok for value, ok in zip(log_probs, right, strict=True) if value == max(log_probs)]
    return sum(best) / len(best)


def share_of_right(log_probs: Sequence[float], right: Sequence[bool]) -> float:
    """Return the probability of the right answers among all that are given (MC2)."""
    top = max(log_probs)
    weights = [exp(value - top) for value in log_probs]
    return fsum(weight for weight, ok in zip(weights, right, strict=True) if ok) / fsum(weights)


def log_odds_of_right(log_probs: Sequence[float], right: Sequence[bool]) -> float:
    """Return the log of the odds of the right answers against the others: exact where their share is 1 in float64."""
    sides = [[value for value, ok in zip(log_probs, right, strict=True) if ok is side] for side in (True, False)]
    ours, theirs = (max(side) + log(fsum(exp(value - max(side)) for value in side)) for side in sides)
    return ours - theirs
