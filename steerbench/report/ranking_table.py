"""The ranking of a group as cells: a number as text, the same number to sort by, and its interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from steerbench.records import METRICS
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


@dataclass(frozen=True)
class Column:
    """A column with its meaning, and how it makes its cells."""

    name: str
    head: str
    meaning: str
    digits: int = 3

    @property
    def is_gain(self) -> bool:
        """Whether it holds a gain over the unsteered model."""
        return self.name.endswith("_gain")


_COLUMNS = (
    Column("reward_gain", "reward gain", "reward over the unsteered model, with a 95 % interval over the prompts", 2),
    Column("held_out_reward_gain", "held-out gain", "the same by the held-out reward", 2),
    Column("gold_gain", "gold gain", "the same by the true score", 2),
    Column("reward_gain_p_holm", "p (Holm)", "p-value of the reward gain, corrected for the number of methods"),
    Column("reward", "reward", METRICS["reward"]),
    Column("held_out_reward", "held-out", METRICS["held_out_reward"]),
    Column("gold", "gold", METRICS["gold"]),
    Column("win_rate", "win rate", METRICS["win_rate"], 2),
    Column("win_rate_preferred", "win / preferred", METRICS["win_rate_preferred"], 2),
    Column("worse", "worse", METRICS["worse"], 2),
    Column("diversity", "diversity", METRICS["diversity"]),
    Column("coherence", "coherence", METRICS["coherence"]),
    Column("length", "length", METRICS["length"], 1),
    Column("kl", "KL", METRICS["kl"]),
    Column("matched", "KL matched", "1 where every seed met the KL asked for, on validation prompts; 0 where not", 0),
    Column("perplexity", "perplexity", METRICS["perplexity"], 2),
    Column("decode_ratio", "time ×", "decoding time per token beside that of the unsteered model, batch of one", 2),
    Column("reward_gain_fit_sd", "fit sd", "standard deviation of the reward gain between fits"),
    Column("reward_gain_sampling_sd", "sampling sd", "standard deviation of the reward gain between samples"),
    Column("fit_seconds", "fit s", "seconds of the fit; what methods share counts for the first", 1),
    Column("seeds", "seeds", "seeds that were measured", 0),
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


def ranking(group: Group) -> Ranking:
    """Return the table of a group: columns that hold a number, rows by rank."""
    columns = [column for column in _COLUMNS if group.has(column.name)]
    scales = {column.name: _scale(group, column.name) for column in columns if column.is_gain}
    ranks = [row.number("rank") for row in group.rows]
    rows = [
        (row, _rank(row, ranks), [_cell(row, column, scales.get(column.name)) for column in columns])
        for row in group.rows
    ]
    known = [rank for rank in ranks if rank is not None]
    return Ranking(columns, rows, len(set(known)) < len(known), len(known) < len(ranks))


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
    text, sort = f"{value:{sign}z.{column.digits}f}", f"{value:z.6f}"
    if column.name.endswith(("_p", "_p_holm")) and value < 0.001:
        text = "< 0.001"
    if low is None or high is None:
        return Cell(text, sort)
    told = f"{low:z.{column.digits}f} to {high:z.{column.digits}f}"
    bar = Bar(*(round(scale(v), 2) for v in (low, value, high, 0.0))) if scale else None
    up_or_down = ("up" if low > 0 else "down" if high < 0 else "") if column.is_gain else ""
    return Cell(text, sort, told, bar, up_or_down)


def _scale(group: Group, name: str) -> Callable[[float], float]:
    """Return the map from a gain to its place in a bar; the same for all rows, so that bars can be compared."""
    found = [row.number(f"{name}{end}") for row in group.rows for end in ("", "_low", "_high")]
    ends = [0.0, *(value for value in found if value is not None)]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0
    return lambda value: _WIDTH * (value - low) / span
