"""Two methods beside each other, on the same prompts and seeds."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd

from steerbench.errors import SteerbenchError, suggest
from steerbench.records.choice_gains import anti_steerable_gaps, capability_gaps
from steerbench.records.comparisons import COMPARISONS, wins
from steerbench.records.leaderboard import by_task, fits_of, rows_of
from steerbench.records.record import METRICS, Record
from steerbench.records.scores import Scored, scores_of
from steerbench.records.statistics import Gaps, claim_p_values, gaps, intervals, p_values

_OF_TOKENS = ("kl", "perplexity")
"""Means over all tokens, which are not compared response by response."""
DERIVED = {"capability": capability_gaps, "anti_steerable": anti_steerable_gaps}
"""What is told of two methods beside the metrics of each."""


class Pair(NamedTuple):
    """The records of two methods on one task, with the same seeds in the same order."""

    first: list[Record]
    second: list[Record]

    def difference(self, metric: str) -> Gaps | None:
        """Return first minus second on each prompt; None for a metric that not every response has.

        `capability` is that of each question of the check, and `anti_steerable` 1 where the first lowers the log-odds
        of a question's matching answer, else 0.
        """
        seeded = any(fits_of(group) != 1 for group in self)
        if metric in DERIVED:
            return DERIVED[metric](self.first, self.second, seeded)
        first, second = ([scores_of(record) for record in group] for group in self)
        if not all(table.has(metric) for table in (*first, *second)):
            return None
        return gaps(first, second, metric, seeded=seeded)

    def means(self, metric: str) -> tuple[float, float]:
        """Return the mean of a metric over the seeds of each."""
        first, second = (fmean(record.metrics[metric] for record in group) for group in self)
        return first, second


def pairs(records: Sequence[Record], first: str, second: str) -> dict[str, Pair]:
    """Return by task the records of two methods, by the names that the leaderboard gives them, with their shared seeds.

    Raises SteerbenchError if no task has both with a seed in common, and if the records were not measured alike.
    """
    found: dict[str, Pair] = {}
    names: set[str] = set()
    for task, group in by_task(records).items():
        rows = rows_of([Scored.of(record) for record in group])
        names |= rows.keys()
        both = [rows.get(first, []), rows.get(second, [])]
        shared = set.intersection(*({record.seed for record in row} for row in both))
        if shared:
            found[task] = Pair(*([record for record in row if record.seed in shared] for row in both))
    if not found:
        for name in (first, second):
            if name not in names:
                raise SteerbenchError(suggest("method in these records", name, sorted(names)))
        raise SteerbenchError(f"no task has records of {first} and {second} with a seed in common.")
    return found


def paired_comparison(records: Sequence[Record], first: str, second: str) -> pd.DataFrame:
    """Return how the first of two methods differs from the second: one row per task and metric.

    - `seeds`: how many both were measured with, which are those that count
    - `first`, `second`: the means of each
    - `difference`, `low`, `high`: first minus second on the same prompts, with the 95 % interval of the leaderboard's
      gains: over clusters of prompts, and over seeds where these gave one of the two several steerings
    - `p`: that they do not differ, of this metric alone; empty with one seed of a method whose fit is random
    - `higher`: share of responses in which the first has the higher value, ties one half

    What is a mean over tokens has none of the last five. Raises as `pairs`.
    """
    return pd.DataFrame(
        {"task": task} | row for task, pair in pairs(records, first, second).items() for row in _compared(pair)
    )


def _compared(pair: Pair) -> list[dict[str, Any]]:
    """Return the rows of one task, in the order of the metrics."""
    measured = [
        name
        for name in METRICS
        if name not in COMPARISONS and all(name in record.metrics for group in pair for record in group)
    ]
    gap_of = {name: gap for name in measured if name not in _OF_TOKENS and (gap := pair.difference(name)) is not None}
    told = dict(zip(gap_of, _told(list(gap_of.values())), strict=True))
    return [
        {"metric": name, "seeds": len(pair.first)}
        | dict(zip(("first", "second"), pair.means(name), strict=True))
        | told.get(name, {})
        for name in measured
    ]


def _told(found: Sequence[Gaps]) -> list[dict[str, Any]]:
    """Return difference, interval, p-value and share of each metric."""
    p = claim_p_values(found, p_values(found))
    return [
        {
            "difference": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "p": value if gap.testable else None,
            "higher": fmean(wins(gap.of_seeds.ravel(), [0.0] * gap.of_seeds.size)),
        }
        for gap, interval, value in zip(found, intervals(found), p, strict=True)
    ]
