"""Two methods beside each other, on the same prompts and seeds."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from steerbench.errors import SteerbenchError, suggest
from steerbench.records.comparisons import COMPARISONS, wins
from steerbench.records.leaderboard import by_task, fits_of, rows_of
from steerbench.records.record import METRICS, Record
from steerbench.records.scores import Scored, scores_of
from steerbench.records.statistics import claim_p_values, gaps, intervals, p_values

_OF_TOKENS = ("kl", "perplexity")
"""Means over all tokens, which are not compared response by response."""


def paired_comparison(records: Sequence[Record], first: str, second: str) -> pd.DataFrame:
    """Return how the first of two methods differs from the second: one row per task and metric.

    - `seeds`: how many both were measured with, which are those that count
    - `first`, `second`: the means of each
    - `difference`, `low`, `high`: first minus second on the same prompts, with the 95 % interval of the leaderboard's
      gains: over clusters of prompts, and over seeds where these gave one of the two several steerings
    - `p`: that they do not differ, of this metric alone; empty with one seed of a method whose fit is random
    - `higher`: share of responses in which the first has the higher value, ties one half

    What is a mean over tokens has none of the last five. Raises SteerbenchError if no task has both, by the names that
    the leaderboard gives them, with a seed in common, and if the records were not measured alike.
    """
    tables: list[dict[str, Any]] = []
    names: set[str] = set()
    for task, group in by_task(records).items():
        rows = rows_of([Scored.of(record) for record in group])
        names |= rows.keys()
        if first in rows and second in rows:
            tables += [{"task": task} | row for row in _compared(rows[first], rows[second])]
    if not tables:
        for name in (first, second):
            if name not in names:
                raise SteerbenchError(suggest("method in these records", name, sorted(names)))
        raise SteerbenchError(f"no task has records of {first} and {second} with a seed in common.")
    return pd.DataFrame(tables)


def _compared(first: Sequence[Record], second: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the rows of one task, in the order of the metrics."""
    shared = {record.seed for record in first} & {record.seed for record in second}
    one, other = ([record for record in group if record.seed in shared] for group in (first, second))
    if not shared:
        return []
    found = _differences(one, other)
    return [
        {"metric": name, "seeds": len(shared)} | _means(name, one, other) | found.get(name, {})
        for name in METRICS
        if name not in COMPARISONS and all(name in record.metrics for record in (*one, *other))
    ]


def _means(name: str, one: Sequence[Record], other: Sequence[Record]) -> dict[str, float]:
    return {
        side: fmean(record.metrics[name] for record in group) for side, group in (("first", one), ("second", other))
    }


def _differences(one: Sequence[Record], other: Sequence[Record]) -> Mapping[str, dict[str, Any]]:
    """Return difference, interval, p-value and share of each metric that every response has."""
    tables = [[scores_of(record) for record in group] for group in (one, other)]
    everywhere = [scores_of(record) for record in (*one, *other)]
    names = [n for n in METRICS if n not in (*COMPARISONS, *_OF_TOKENS) and all(t.has(n) for t in everywhere)]
    seeded = fits_of(one) != 1 or fits_of(other) != 1
    found = [gaps(*tables, name, seeded=seeded) for name in names]
    p = claim_p_values(found, p_values(found))
    return {
        name: {
            "difference": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "p": value if gap.testable else None,
            "higher": fmean(wins(gap.of_seeds.ravel(), [0.0] * gap.of_seeds.size)),
        }
        for name, gap, interval, value in zip(names, found, intervals(found), p, strict=True)
    }
