"""Comparisons: what a reward says beside another one. A record holds raw scores; these are derived when it is read.

`win_rate`, `held_out_win_rate` and `worse` hold a response against the unsteered model's to the same prompt, so they
need the record of that model with the same seed; those that end in `_preferred` hold it against the data set's
preferred reply, whose rewards stand beside. Records before schema 2 keep comparisons instead of what they are made of:
theirs count where a raw score or the unsteered record is not there, and there alone.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from steerbench.records.record import Record
from steerbench.records.statistics import TOLERANCE, aligned

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
    with np.errstate(invalid="ignore"):
        gaps = np.asarray(scores, float) - np.asarray(baseline, float)
    won = np.where(np.abs(gaps) <= tolerance, 0.5, (gaps > 0).astype(float))
    found: list[float] = np.where(np.isfinite(gaps), won, np.nan).tolist()
    return found


def compared(record: Record, unsteered: Record | None) -> pd.DataFrame:
    """Return the examples of a record with all comparisons that can be derived, for each response.

    `unsteered` is the record of the unsteered model with the same protocol and seed, which may be the record itself.
    Raises SteerbenchError if the two do not hold the same prompts.
    """
    return record.examples.assign(**_derived(record.examples, None if unsteered is None else unsteered.examples))


def comparisons(record: Record, unsteered: Record | None) -> dict[str, float]:
    """Return the mean of each comparison over the responses of a record: derived, or else as the record keeps it."""
    derived = _derived(record.examples, None if unsteered is None else unsteered.examples)
    kept = {name: value for name, value in record.metrics.items() if name in COMPARISONS}
    return kept | {name: float(pd.Series(values).mean()) for name, values in derived.items()}


def _derived(table: pd.DataFrame, unsteered: pd.DataFrame | None) -> dict[str, list[float]]:
    beside = aligned(unsteered, table) if unsteered is not None and "id" in unsteered and "id" in table else None
    derived: dict[str, list[float]] = {}
    for win, reward in WINS.items():
        if _has(table, reward) and beside is not None and _has(beside, reward):
            derived[win] = wins(table[reward].to_numpy(), beside[reward].to_numpy())
        if _has(table, reward) and _has(table, preferred(reward)):
            derived[f"{win}_preferred"] = wins(table[reward].to_numpy(), table[preferred(reward)].to_numpy())
    if "win_rate" in derived:
        derived["worse"] = [float(win == 0) for win in derived["win_rate"]]
    return derived


def _has(table: pd.DataFrame, column: str) -> bool:
    return column in table and is_numeric_dtype(table[column])
