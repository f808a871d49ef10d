"""Which plots a group gets, and what is written beside them. A plot is there only where its numbers are."""

from collections.abc import Sequence
from typing import NamedTuple

from steerbench.records.columns import COLUMNS
from steerbench.report.curves import Curve, Trials, sweeps, tuned
from steerbench.report.frontier import measured_best_of_n, pareto, win_rate_bound
from steerbench.report.groups import Group, Row
from steerbench.report.plots import Line, Panel, Point, Scale, Scatter, Span, curves, scatter
from steerbench.report.svg import BLUE, GREEN, MUTED, ORANGE, RED
from steerbench.report.tradeoff import Tradeoff

GAIN = "reward_gain"
_COLOURS = {GAIN: BLUE, "held_out_reward_gain": ORANGE, "gold_gain": GREEN}
_KL_AXIS = f"{COLUMNS['kl'].title} to the unsteered model, {COLUMNS['kl'].unit}"
_WIDE = 4.0
"""Ratio of the ends of an axis from which on it is logarithmic."""
_FRONT = "Green: the Pareto front. No other method is better in one of the two without being worse in the other."


_STEPS = 24
"""Straight pieces that a fitted curve is drawn by."""


class Shown(NamedTuple):
    """A plot with its heading and what it says."""

    title: str
    svg: str
    note: str


def scatters(group: Group) -> list[Shown]:
    """Return the plots of the methods of a group as points."""
    pairs = [
        _truth(group, "held_out_reward_gain", "Guide against held-out reward"),
        _truth(group, "gold_gain", "Guide against gold, the truth of the testbed"),
        _front(group, "diversity", COLUMNS["diversity"].title, "Reward gain against diversity"),
        _kl(group),
        _win_rate(group),
        _front(group, "decode_ratio", "decode time / unsteered", "Reward gain against decoding time"),
    ]
    return [shown for shown in pairs if shown]


def sweep_panels(group: Group, found: Sequence[Curve], fits: Sequence[Sequence[Tradeoff]]) -> list[Shown]:
    """Return one small panel for each method whose strength was swept on the test prompts, with the curves fitted."""
    panels = [(one, _sweep_panel(group, i, one, fits[i])) for i, one in enumerate(found)]
    known = [(one, panel) for one, panel in panels if panel.lines]
    drawn = curves([panel for _, panel in known])
    return [Shown(one.label, svg, one.dial) for (one, _), svg in zip(known, drawn, strict=True)]


def trial_panels(group: Group) -> list[Shown]:
    """Return one small panel for each method whose tuning varied one number."""
    found = tuned(group)
    drawn = curves([_trial_panel(group, one) for one in found])
    return [Shown(f"{one.row.key}  {one.row.method}", svg, one.dial) for one, svg in zip(found, drawn, strict=True)]


def verdict(x: float, y: float, x_span: Span, y_span: Span) -> str:
    """Return the colour of a method by its gain on the guide (x) and on what it did not see (y).

    Red where the other surely fell and the guide did not, orange where the guide alone surely rose, else blue. Signs
    alone count, because the two have units of their own.
    """
    (x_low, x_high), (y_low, y_high) = x_span or (x, x), y_span or (y, y)
    if y_high < 0 <= x_high:
        return RED
    return ORANGE if x_low > 0 >= y_low else BLUE


def truth_points(group: Group, column: str) -> list[Point]:
    """Return the gain on the guide (x) and on what no method has seen (y), coloured by over-optimisation."""
    found = []
    for row in group.rows:
        x, y = row.number(GAIN), row.number(column)
        if x is not None and y is not None and not row.is_unsteered:
            spans = _span(row, GAIN), _span(row, column)
            title = f"{row.method}: {x:+.2f}, {y:+.2f}"
            found.append(Point(row.key, title, x, y, *spans, colour=verdict(x, y, *spans)))
    return found


def _truth(group: Group, column: str, title: str) -> Shown | None:
    points = truth_points(group, column)
    if not points:
        return None
    labels = COLUMNS[GAIN].title, COLUMNS[column].title
    plot = Scatter(f"{group.name}-{column}", title, *labels, points, diagonal=True)
    note = (
        "Dashed: equal numbers, though the two scores have units of their own. Orange diamonds surely rose on the "
        "guide alone, red triangles surely fell and the guide did not: over-optimised."
    )
    return Shown(title, scatter(plot), note)


def _front(group: Group, column: str, x_label: str, title: str) -> Shown | None:
    points = _points(group, column, GAIN)
    if not points:
        return None
    lower = COLUMNS[column].better < 0
    widest, narrowest = max(p.x for p in points), min(p.x for p in points)
    scale: Scale = "log" if widest > _WIDE * narrowest > 0 else "linear"
    plot = Scatter(
        f"{group.name}-{column}",
        title,
        x_label,
        COLUMNS[GAIN].title,
        points,
        front=_best(points, lower),
        front_steps="post" if lower else "pre",
        scale=scale,
    )
    return Shown(title, scatter(plot), _FRONT)


def _kl(group: Group) -> Shown | None:
    points = _points(group, "kl", GAIN)
    if not points:
        return None
    places = {point.key: (point.x, point.y) for point in points}
    swept = [Line([places[row.key] for row in found.rows if row.key in places]) for found in sweeps(group)]
    anchors = measured_best_of_n(group, GAIN)
    best = Line([(a.kl, a.value) for a in anchors], ORANGE, dashed=True, texts=[f"N={a.n}" for a in anchors])
    lines = [line for line in (*swept, best) if line.points]
    plot = Scatter(
        f"{group.name}-kl",
        "Reward gain against KL",
        _KL_AXIS,
        COLUMNS[GAIN].title,
        points,
        lines,
        _best(points, lower=True),
        scale="symlog",
    )
    beside = " Orange, dashed: best-of-N at its bound, (log N - (N-1)/N) per response." if anchors else ""
    joined = " Grey lines join one method at several strengths." if any(line.points for line in swept) else ""
    return Shown("Reward gain against KL", scatter(plot), _FRONT + beside + joined)


def _win_rate(group: Group) -> Shown | None:
    points = _points(group, "kl", "win_rate")
    bound = win_rate_bound(group)
    if not points or not bound:
        return None
    widest = max(*(p.x for p in points), bound[-1].kl)
    reached = [a for a in bound if a.kl <= widest]
    line = Line([(a.kl, a.value) for a in reached], ORANGE, dashed=True, texts=[f"{a.n}" for a in reached])
    title = "Win rate against KL"
    plot = Scatter(f"{group.name}-win", title, _KL_AXIS, COLUMNS["win_rate"].title, points, [line], scale="symlog")
    note = "Orange, dashed: the most that best-of-N can reach, N/(N+1), at its KL bound. The model itself has one half."
    return Shown(title, scatter(plot), note)


def _points(group: Group, x_column: str, y_column: str) -> list[Point]:
    found = []
    for row in group.rows:
        x, y = row.number(x_column), row.number(y_column)
        if x is not None and y is not None:
            title = f"{row.method}: {x:.3f}, {y:+.2f}"
            found.append(Point(row.key, title, x, y, y_span=_span(row, y_column)))
    return found


def _span(row: Row, column: str) -> Span:
    low, high = row.number(f"{column}_low"), row.number(f"{column}_high")
    return None if low is None or high is None else (low, high)


def _best(points: Sequence[Point], lower: bool) -> list[tuple[float, float]]:
    places = [(point.x, point.y) for point in points]
    return [places[i] for i in pareto(places, lower)]


def _sweep_panel(group: Group, number: int, found: Curve, fitted: Sequence[Tradeoff]) -> Panel:
    values = {
        colour: [(v, row.number(column)) for v, row in zip(found.values, found.rows, strict=True)]
        for column, colour in _COLOURS.items()
    }
    known = {colour: [(v, y) for v, y in points if y is not None] for colour, points in values.items()}
    lines = [Line(points, colour) for colour, points in known.items() if points]
    strengths = [max(found.values) * i / _STEPS for i in range(_STEPS + 1)]
    fits = [Line([(x, one.at(x)) for x in strengths], _COLOURS[f"{one.score}_gain"], True) for one in fitted]
    return Panel(f"{group.name}-sweep{number}", f"Gains of {found.label} over {found.dial}", [*lines, *fits], 0.0)


def _trial_panel(group: Group, trials: Trials) -> Panel:
    seeds = [[(v, s) for v, s in zip(trials.values, seed, strict=True) if s is not None] for seed in trials.seeds]
    thin = [Line(points, MUTED) for points in seeds] if len(seeds) > 1 else []
    mean = Line(list(zip(trials.values, trials.mean, strict=True)), BLUE)
    label = f"Validation reward of {trials.row.method} over {trials.dial}"
    return Panel(f"{group.name}-trials-{trials.row.key}", label, [*thin, mean], trials.unsteered, trials.chosen)
