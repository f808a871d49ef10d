"""The plots of the page: methods as points, and curves over a hyperparameter. Each gives an `<svg>` element."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10
from typing import Any, Literal

from matplotlib.ticker import MaxNLocator

from steerbench.report import svg
from steerbench.report.svg import BLUE, CARD, GREEN, MUTED, ORANGE, RED

Span = tuple[float, float] | None
"""Both ends of an interval, or none."""
MARKS = {BLUE: "o", ORANGE: "D", RED: "v", GREEN: "s"}
"""A shape for each colour, for those who do not see it."""
_LINEAR = 0.01
"""Where a logarithmic scale begins; below, down to zero, it is linear."""
_MOST_TICKS = 7


@dataclass(frozen=True)
class Point:
    """A method in a plot."""

    key: str
    title: str
    x: float
    y: float
    x_span: Span = None
    y_span: Span = None
    colour: str = BLUE


@dataclass(frozen=True)
class Line:
    """A line through points, each with a short text or an empty one."""

    points: list[tuple[float, float]]
    colour: str = MUTED
    dashed: bool = False
    texts: list[str] = field(default_factory=list)


Scale = Literal["linear", "log", "symlog"]


@dataclass(frozen=True)
class Scatter:
    """Methods in two dimensions."""

    name: str
    label: str
    x_label: str
    y_label: str
    points: list[Point]
    lines: list[Line] = field(default_factory=list)
    front: list[tuple[float, float]] = field(default_factory=list)
    front_steps: str = "post"
    diagonal: bool = False
    scale: Scale = "linear"
    """Of x; `symlog` is logarithmic beyond `_LINEAR`, for what may be zero."""


def scatter(plot: Scatter) -> str:
    """Return the SVG of methods as lettered points with their intervals."""
    with svg.style():
        made, (axes,) = svg.figure(400, 310, left=0.14, right=0.965, bottom=0.145, top=0.98)
        axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
        if plot.scale == "symlog":
            axes.set_xscale("symlog", linthresh=_LINEAR, linscale=0.5)
        if plot.scale == "log":
            axes.set_xscale("log")
        fill(axes, plot)
        if plot.scale != "linear":
            low, high = axes.get_xlim()
            axes.set_xticks([], minor=True)
            axes.set_xticks(found := log_ticks(low, high), [f"{value:g}" for value in found])
        return svg.inline(made, plot.name, plot.label, {f"p-{p.key}": p.title for p in plot.points})


def log_ticks(low: float, high: float) -> list[float]:
    """Return where a logarithmic axis from `low` >= 0 to `high` > `low` has its labels: three to seven, or a decade's.

    They are 1, 2 and 5 of each decade; the decades alone where that is too many, and even steps where it is too few. An
    axis from 0 is linear up to `_LINEAR`.
    """
    decades = [10.0**k for k in range(floor(log10(low or _LINEAR)), ceil(log10(high)) + 1)]
    fine = [0.0, *(step * decade for decade in decades for step in (1, 2, 5))]
    for steps in ([x for x in fine if low <= x <= high], [x for x in (0.0, *decades) if low <= x <= high]):
        if 3 <= len(steps) <= _MOST_TICKS:
            return steps
    if len(decades) > _MOST_TICKS:
        return [x for x in decades if low <= x <= high]
    even = MaxNLocator(nbins=7, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(f"{x:.6g}") for x in even if low <= x <= high]


def fill(axes: Any, plot: Scatter) -> None:
    """Draw what a scatter plot holds into axes."""
    _limit(axes, plot)
    if plot.diagonal:
        axes.axline((0, 0), slope=1, color=MUTED, lw=1, ls=(0, (4, 3)))
        axes.axhline(0, color=MUTED, lw=0.8)
        axes.axvline(0, color=MUTED, lw=0.8)
    if plot.front:
        x, y = zip(*plot.front, strict=True)
        axes.plot(x, y, color=GREEN, lw=1.4, drawstyle=f"steps-{plot.front_steps}", alpha=0.8)
        axes.plot(x, y, "o", mfc="none", mec=GREEN, mew=1.4, ms=11)
    for line in plot.lines:
        _draw_line(axes, line)
    for point in plot.points:
        _draw_point(axes, point)
    svg.write_labels(axes, [(p.x, p.y) for p in plot.points], [p.key for p in plot.points])


@dataclass(frozen=True)
class Panel:
    """One small plot among others: lines over a hyperparameter, a dashed level, and marked values of x."""

    name: str
    label: str
    lines: list[Line]
    level: float | None
    marked: list[float] = field(default_factory=list)

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        values = [y for line in self.lines for _, y in line.points] + ([] if self.level is None else [self.level])
        return min(values), max(values)


def curves(panels: Sequence[Panel]) -> list[str]:
    """Return the SVG of each panel. All have one vertical scale, so that noise in one does not look like an effect."""
    with svg.style():  # once: matplotlib checks some 300 settings whenever they are set
        return [_curve(panel, shared_span(panels)) for panel in panels]


def shared_span(panels: Sequence[Panel]) -> tuple[float, float]:
    """Return the ends of a vertical scale on which all panels have room."""
    return _padded([end for panel in panels for end in panel.ends])


def _curve(panel: Panel, span: tuple[float, float]) -> str:
    made, (axes,) = svg.figure(250, 170, left=0.15, right=0.97, bottom=0.13, top=0.96)
    draw_panel(axes, panel, span)
    return svg.inline(made, panel.name, panel.label)


def draw_panel(axes: Any, panel: Panel, span: tuple[float, float]) -> None:
    """Draw what a panel holds into axes with a vertical scale."""
    axes.set_ylim(*span)
    if panel.level is not None:
        axes.axhline(panel.level, color=MUTED, lw=1, ls=(0, (4, 3)))
    for x in sorted(set(panel.marked)):
        axes.axvline(x, color=GREEN, lw=1.2, alpha=0.5)
    for line in panel.lines:
        _draw_line(axes, line, dots=line.colour != MUTED and not line.dashed)
    axes.locator_params(nbins=5)


def _draw_line(axes: Any, line: Line, dots: bool = True) -> None:
    x, y = zip(*line.points, strict=True)
    pattern = (0, (4, 3)) if line.dashed else "-"
    axes.plot(
        x,
        y,
        color=line.colour,
        lw=1.2 if dots else 0.8,
        ls=pattern,
        marker=MARKS.get(line.colour, ".") if dots else "",
        ms=3,
    )
    for point, text in zip(line.points, line.texts, strict=False):
        axes.annotate(text, point, (4, -9), textcoords="offset points", fontsize=8.5, color=MUTED)


def _draw_point(axes: Any, point: Point) -> None:
    for span, axis in ((point.x_span, "x"), (point.y_span, "y")):
        if span:
            along, across = list(span), [point.y if axis == "x" else point.x] * 2
            x, y = (along, across) if axis == "x" else (across, along)
            axes.plot(x, y, color=point.colour, lw=1, alpha=0.45, solid_capstyle="butt")
    (mark,) = axes.plot(point.x, point.y, MARKS[point.colour], color=point.colour, ms=6, mec=CARD, mew=0.8)
    mark.set_gid(f"p-{point.key}")


def _limit(axes: Any, plot: Scatter) -> None:
    """Fix both ranges before anything is drawn, because the letters are placed by them."""
    along = [e for p in plot.points for e in (p.x, *(p.x_span or ()))] + [
        x for line in plot.lines for x, _ in line.points
    ]
    up = [e for p in plot.points for e in (p.y, *(p.y_span or ()))] + [y for line in plot.lines for _, y in line.points]
    if plot.diagonal:
        along, up = [*along, 0.0], [*up, 0.0]
    span = {"log": (min(along) / 1.15, max(along) * 1.15), "symlog": (0.0, max(along) * 1.3 or 1.0)}
    axes.set_xlim(*span.get(plot.scale, _padded(along)))
    axes.set_ylim(*_padded(up))


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.5
    return low - room, high + room
