"""The ranked dot plot of a group: a row for each method, its gain with an interval, and beside it what it costs."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from steerbench.records.columns import COLUMNS, Column
from steerbench.report.answer import GUIDE, Judged, counting_score, judged, ranked
from steerbench.report.groups import Group, Row

PRICES = ("damage", "kl", "worse", "decode_ratio")
"""What a gain costs: capability, distance from the model, prompts that got worse, time."""
_ROOM = 0.3
"""How far an interval may lead the scale beyond the dots, in spans of the dots: a few seeds give very wide ones."""
_EDGE = 3.0
"""Percent of the width that stay free on each side, for the marks."""


class Dot(NamedTuple):
    """A method in the plot; places are in percent of the width."""

    row: Row
    judged: Judged
    gain: str
    interval: str
    at: float
    low: float
    high: float
    cut_low: bool
    """Whether the interval goes on beyond the plot."""
    cut_high: bool
    guide: float | None
    guide_gain: str
    prices: list[str]


class Tick(NamedTuple):
    """A number of the axis."""

    at: float
    text: str


class DotPlot(NamedTuple):
    """The plot of a group."""

    column: Column
    guide: bool
    """Whether the gain of the guiding reward stands beside another."""
    prices: list[Column]
    dots: list[Dot]
    zero: float
    ticks: list[Tick]
    kinds: list[Judged]
    """What the legend must explain."""
    noise: str
    """What the measures say of the unsteered model beside itself."""


def dot_plot(group: Group) -> DotPlot | None:
    """Return the plot of a group; None where no method has a gain over the unsteered model."""
    column = counting_score(group)
    if column is None:
        return None
    rows = ranked(group, column)
    guide = column != GUIDE and any(row.number(GUIDE) is not None for row in rows)
    low, high = _ends(rows, [column, GUIDE] if guide else [column])
    place = _scale(low, high)
    prices = [name for name in PRICES if any(row.number(name) is not None for row in rows)]
    dots = [_dot(row, column, guide, prices, place) for row in rows]
    kinds = [kind for kind in Judged if any(dot.judged is kind for dot in dots)]
    return DotPlot(
        COLUMNS[column],
        guide,
        [COLUMNS[name] for name in prices],
        dots,
        place(0.0),
        _ticks(low, high, place),
        kinds,
        _noise(group),
    )


def _dot(row: Row, column: str, guide: bool, prices: Sequence[str], place: Callable[[float], float]) -> Dot:
    value = row.number(column) or 0.0
    low, high, other = row.number(f"{column}_low"), row.number(f"{column}_high"), row.number(GUIDE)
    known = low is not None and high is not None
    start, end = (place(low or 0.0), place(high or 0.0)) if known else (place(value), place(value))
    digits = COLUMNS[column].digits
    return Dot(
        row=row,
        judged=judged(row, column),
        gain=f"{value:+z.{digits}f}",
        interval=f"{low:z.{digits}f} to {high:z.{digits}f}" if known else "",
        at=place(value),
        low=max(start, 0.0),
        high=min(end, 100.0),
        cut_low=start < 0.0,
        cut_high=end > 100.0,
        guide=place(other) if guide and other is not None else None,
        guide_gain="–" if other is None else f"{other:+z.{COLUMNS[GUIDE].digits}f}",
        prices=[_price(row, name) for name in prices],
    )


def _price(row: Row, name: str) -> str:
    value = row.number(name)
    return "–" if value is None else f"{value:z.{COLUMNS[name].digits}f}"


def _ends(rows: Sequence[Row], columns: Sequence[str]) -> tuple[float, float]:
    """Return the ends of the axis: all dots and zero, and of the intervals as much as there is room for."""
    dots = [0.0, *(value for row in rows for name in columns if (value := row.number(name)) is not None)]
    spans = [row.number(f"{columns[0]}_{end}") for row in rows for end in ("low", "high")]
    known = [*dots, *(value for value in spans if value is not None)]
    room = _ROOM * (max(dots) - min(dots)) or 1.0
    return max(min(known), min(dots) - room), min(max(known), max(dots) + room)


def _scale(low: float, high: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: round(_EDGE + (100.0 - 2 * _EDGE) * (value - low) / span, 1)


def _ticks(low: float, high: float, place: Callable[[float], float]) -> list[Tick]:
    found = MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [Tick(place(float(x)), f"{float(x):zg}") for x in found if low <= x <= high]


def _noise(group: Group) -> str:
    """Return what time and worse prompts are of the unsteered model beside itself."""
    floor = next((value for row in group.rows if (value := row.number("worse_floor")) is not None), None)
    time = next((value for row in group.rows if row.is_unsteered and (value := row.number("decode_ratio"))), None)
    worse = "" if floor is None else f"{floor:.2f} of the prompts are worse"
    return " and ".join(told for told in (worse, f"time × is {time:.2f}" if time else "") if told)
