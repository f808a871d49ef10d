"""Comparisons: what a reward says beside another one. A record holds raw scores; these are derived when it is read.

`win_rate`, `held_out_win_rate` and `worse` hold a response against the unsteered model's to the same prompt, so they
need the record of that model with the same seed; those that end in `_preferred` hold it against the data set's
preferred reply, whose rewards stand beside. Records before schema 2 keep comparisons instead of what they are made of:
theirs count where a raw score or the unsteered record is not there, and there alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from steerbench.records.record import Record
from steerbench.records.scores import aligned, scores_of
from steerbench.records.statistics import TOLERANCE

WINS = {"win_rate": "reward", "held_out_win_rate": "held_out_reward"}
"""The wins by each reward."""
COMPARISONS = (*WINS, *(f"{win}_preferred" for win in WINS), "worse")
"""The metrics that are derived."""


def preferred(reward: str) -> str:
    """Return the column of the preferred replies' scores by a reward."""
    return f"preferred_{reward}"


def wins(scores: Sequence[float], baseline: Sequence[float], tolerance: float = TOLERANCE) -> list[float]:
    """Return 1 for a win, 0 for a loss, 0.5 for a tie (at most `tolerance` apart), NaN where a score is not finite."""
    if len(scores) != len(baseline):
        raise ValueError(f"{len(scores)} scores and {len(baseline)} to hold them against")
    found: list[float] = _won(np.asarray(scores, float), np.asarray(baseline, float), tolerance).tolist()
    return found


def _won(scores: Any, baseline: Any, tolerance: float = TOLERANCE) -> Any:
    with np.errstate(invalid="ignore"):
        gaps = scores - baseline
    won = np.where(np.abs(gaps) <= tolerance, 0.5, (gaps > 0).astype(float))
    return np.where(np.isfinite(gaps), won, np.nan)


def compared(record: Record, unsteered: Record | None) -> pd.DataFrame:
    """Return the examples of a record with all comparisons that can be derived, for each response.

    `unsteered` is the record of the unsteered model with the same protocol and seed, which may be the record itself.
    Raises SteerbenchError if the two do not hold the same prompts.
    """
    return record.examples.assign(**_derived(record, unsteered))


def comparisons(record: Record, unsteered: Record | None) -> dict[str, float]:
    """Return the mean of each comparison over the responses of a record: derived, or else as the record keeps it."""
    derived = _derived(record, unsteered)
    kept = {name: value for name, value in record.metrics.items() if name in COMPARISONS}
    return kept | {name: _mean(values) for name, values in derived.items()}


def _mean(values: Any) -> float:
    """Return the mean of the numbers that are known, NaN where there is none: pandas' own, without its detours."""
    known = ~np.isnan(values)
    return float(np.where(known, values, 0.0).sum() / known.sum()) if known.any() else float("nan")


def _derived(record: Record, unsteered: Record | None) -> dict[str, Any]:
    table, beside = scores_of(record), None if unsteered is None else scores_of(unsteered)
    beside = aligned(beside, table) if beside is not None and "id" in beside and "id" in table else None
    derived: dict[str, Any] = {}
    for win, reward in WINS.items():
        own, chosen = table.numbers(reward), table.numbers(preferred(reward))
        plain = None if beside is None else beside.numbers(reward)
        if own is not None and plain is not None:
            derived[win] = _won(own, plain)
        if own is not None and chosen is not None:
            derived[f"{win}_preferred"] = _won(own, chosen)
    if "win_rate" in derived:
        derived["worse"] = (derived["win_rate"] == 0).astype(float)
    return derived
