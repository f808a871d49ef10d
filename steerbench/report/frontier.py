"""What a method can be held against: the Pareto front, and best-of-N with its closed forms."""

from collections.abc import Sequence
from math import log
from statistics import fmean
from typing import NamedTuple

from steerbench.report.groups import Group

BEST_OF_N = "best_of_n"


class Anchor(NamedTuple):
    """Best-of-N for one N."""

    n: int
    kl: float
    """Bound on KL(best-of-N || unsteered), nats per token of a mean response."""
    value: float


def pareto(points: Sequence[tuple[float, float]], lower_x: bool = False) -> list[int]:
    """Return the indices of points (x, y) that no other beats, by x and then y. Higher is better, x maybe lower.

    A point beats another if it is no worse in both and better in one.
    """
    sign = -1.0 if lower_x else 1.0
    best: float | None = None
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (-sign * points[i][0], -points[i][1])):
        x, y = points[i]
        if best is None or y > best or (front and points[front[-1]] == (x, y)):
            front.append(i)
            best = y
    return sorted(front, key=lambda i: points[i])


def best_of_n_kl(n: int) -> float:
    """Return the upper bound on the KL divergence of best-of-N in nats per response: log N - (N - 1) / N."""
    return log(n) - (n - 1) / n


def best_of_n_win_rate(n: int) -> float:
    """Return the upper bound on the win rate of best-of-N against one response: N / (N + 1)."""
    return n / (n + 1)


def measured_best_of_n(group: Group, column: str) -> list[Anchor]:
    """Return the best-of-N methods of a group at their KL bound per token and their measured value, by N."""
    found = []
    for row in group.rows:
        parts = row.records[0].parts
        n, kl, value = parts[0]["hyperparameters"].get("n"), row.number("kl"), row.number(column)
        alone = [part["name"] for part in parts] == [BEST_OF_N]
        if alone and isinstance(n, int) and n > 0 and kl is not None and value is not None:
            found.append(Anchor(n, kl, value))
    return sorted(found)


def win_rate_bound(group: Group) -> list[Anchor]:
    """Return the bound on the win rate of best-of-N for some N, at the unsteered model's mean number of tokens.

    Empty where responses are not drawn from the distribution that KL is measured by.
    """
    tables = [r.examples for row in group.rows if row.is_unsteered for r in row.records if "tokens" in r.examples]
    length = fmean(table["tokens"].mean() for table in tables) if tables else 0.0
    drawn = {"temperature": 1, "top_k": 0, "top_p": 1}
    if not length or any(group.first.protocol.get(name) != value for name, value in drawn.items()):
        return []
    return [Anchor(n, best_of_n_kl(n) / length, best_of_n_win_rate(n)) for n in (1, 2, 4, 16, 64, 256)]
