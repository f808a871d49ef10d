"""What the log-probabilities of given answers come to: the likeliest one, and the share of the right ones."""

from collections.abc import Sequence
from math import exp, fsum


def likeliest_is_right(log_probs: Sequence[float], right: Sequence[bool]) -> float:
    """Return 1 where the answer with the highest log-probability is right, its share of a tie (MC1, accuracy)."""
    best = [ok for value, ok in zip(log_probs, right, strict=True) if value == max(log_probs)]
    return sum(best) / len(best)


def share_of_right(log_probs: Sequence[float], right: Sequence[bool]) -> float:
    """Return the probability of the right answers among all that are given (MC2)."""
    top = max(log_probs)
    weights = [exp(value - top) for value in log_probs]
    return fsum(weight for weight, ok in zip(weights, right, strict=True) if ok) / fsum(weights)
