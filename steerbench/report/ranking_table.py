"""The ranking of a group as cells: a number as text, the same number to sort by, and its interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from steerbench.records.columns import COLUMNS, RANKED_BY, Column
from steerbench.report.groups import Group, Row

_WIDTH = 100.0
"""Units of a bar, from the lowest end of an interval in its column to the highest."""


class Bar(NamedTuple):
    """An interval drawn on the scale of its column, in units of `_WIDTH`."""

    low: float
    mean: float
    high: float
    zero: float


@dataclass(frozen=True)
class Cell:
    """A cell of the table."""

    text: str
    sort: str = ""
    """What to sort by: a number in full, or empty for what is missing."""
    interval: str = ""
    bar: Bar | None = None
    sign: str = ""
    """`up` or `down` where the whole interval is above or below zero."""


_SHOWN = (
    "reward_gain",
    "held_out_reward_gain",
    "gold_gain",
    "validation_gain",
    "length_controlled_gain",
    "accuracy_gain",
    "mc1_gain",
    "mc2_gain",
    "matching_gain",
    "steerability",
    "anti_steerable",
    "damage",
    "capability",
    "reward_gain_p_holm",
    "reward",
    "held_out_reward",
    "gold",
    "accuracy",
    "mc1",
    "mc2",
    "matching",
    "over_refusal",
    "harmful_compliance",
    "win_rate",
    "win_rate_preferred",
    "worse",
    "worse_floor",
    "agreement",
    "agreement_change",
    "agreement_gold",
    "agreement_gold_change",
    "diversity",
    "repetition",
    "coherence",
    "length",
    "kl",
    "kl_response",
    "matched",
    "perplexity",
    "decode_ratio",
    "decode_floor",
    "reward_gain_fit_sd",
    "reward_gain_sampling_sd",
    "fit_seconds",
    "seeds",
    "fits",
)


@dataclass(frozen=True)
class Ranking:
    """The table of a group."""

    columns: list[Column]
    rows: list[tuple[Row, Cell, list[Cell]]]
    """Each row with the cell of its rank, and one for each column."""
    ties: bool
    unranked: bool
    """Whether a method has no rank."""
    score: str
    """What they are ranked by; empty where there is nothing."""


def ranking(group: Group) -> Ranking:
    """Return the table of a group: columns that hold a number, rows by what they are ranked by."""
    columns = [COLUMNS[name] for name in _SHOWN if group.has(name)]
    scales = {column.name: _scale(group, column.name) for column in columns if column.is_gain}
    ranks = [row.number("rank") for row in group.rows]
    rows = [
        (row, _rank(row, ranks), [_cell(row, column, scales.get(column.name)) for column in columns])
        for row in group.rows
    ]
    known = [rank for rank in ranks if rank is not None]
    scores = [COLUMNS[name].title for name in RANKED_BY if group.has(name)]
    score = scores[0] if scores and not group.has("reward") else "the guiding reward" if scores else ""
    return Ranking(columns, rows, len(set(known)) < len(known), len(known) < len(ranks), score)


def _rank(row: Row, ranks: Sequence[float | None]) -> Cell:
    rank = row.number("rank")
    if rank is None:
        return Cell("–")
    return Cell(f"{'=' if ranks.count(rank) > 1 else ''}{rank:.0f}", f"{rank:.0f}")


def _cell(row: Row, column: Column, scale: Callable[[float], float] | None) -> Cell:
    value = row.number(column.name)
    if value is None or (column.is_gain and row.is_unsteered):
        return Cell("–")
    low, high = row.number(f"{column.name}_low"), row.number(f"{column.name}_high")
    sign = "+" if column.is_gain else ""
    text, sort = f"{value:{sign}z.{column.digits}f}", f"{value:z.6f}".rstrip("0").rstrip(".")
    if column.name.endswith(("_p", "_p_holm")) and value < 0.001:
        text = "< 0.001"
    if low is None or high is None:
        return Cell(text, sort)
    told = f"{low:z.{column.digits}f} to {high:z.{column.digits}f}"
    bar = Bar(*(round(scale(v), 1) for v in (low, value, high, 0.0))) if scale else None
    up_or_down = ("up" if low > 0 else "down" if high < 0 else "") if column.is_gain else ""
    return Cell(text, sort, told, bar, up_or_down)


def _scale(group: Group, name: str) -> Callable[[float], float]:
    """Return the map from a gain to its place in a bar; the same for all rows, so that bars can be compared."""
    found = [row.number(f"{name}{end}") for row in group.rows for end in ("", "_low", "_high")]
    ends = [0.0, *(value for value in found if value is not None)]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0
    return lambda value: _WIDTH * (value - low) / span
