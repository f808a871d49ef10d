"""Given answers over strength: their scores with intervals over the questions, and how far each question is moved.

Steerability of a question is the slope of the log-odds of its matching answer over the strength; a question whose slope
is below zero is anti-steerable (Tan et al. 2024, arXiv:2407.12404).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from steerbench.records.choice_gains import LOG_ODDS, mean_over_questions
from steerbench.records.columns import CHOICE_SCORES, COLUMNS
from steerbench.records.record import Record
from steerbench.records.scores import scores_of
from steerbench.records.statistics import Gaps, Interval, intervals, order_of
from steerbench.report.curves import Curve
from steerbench.report.details import Table
from steerbench.report.figures import Shown
from steerbench.report.groups import Group, Row
from steerbench.report.plots import Line, Panel, curves
from steerbench.report.svg import BLUE
from steerbench.report.tradeoff import STRENGTHS


class Moved(NamedTuple):
    """How far the questions are moved along a curve."""

    slope: Interval
    """Log-odds of the matching answer per unit of strength, in nats, mean over the questions."""
    deviation: float
    """Standard deviation of the slope between questions."""
    against: float
    """Share of questions whose slope is below zero."""


def choice_panels(group: Group, found: Sequence[Curve]) -> list[Shown]:
    """Return one small panel for each curve and score of given answers; the unsteered model is dashed."""
    shown: list[Shown] = []
    for score in CHOICE_SCORES:
        panels = {i: panel for i, one in enumerate(found) if (panel := score_panel(group, i, one, score))}
        drawn = curves(list(panels.values()))
        titles = [f"{COLUMNS[score].title}: {found[i].label}" for i in panels]
        dials = [found[i].dial for i in panels]
        shown += [Shown(*parts) for parts in zip(titles, drawn, dials, strict=True)]
    return shown


def steerability_table(group: Group, found: Sequence[Curve]) -> Table:
    """Return how far questions are moved along each curve as cells; empty where no record tells."""
    told = [(one, moved) for one in found if (moved := moved_along(group, one))]
    heads = ["method", "s", "steerability per s", "sd over questions", "anti-steerable"]
    rows = [
        [one.label, one.dial, _told(moved.slope), f"{moved.deviation:.2f}", f"{moved.against:.0%}"]
        for one, moved in told
    ]
    return [heads, *rows] if rows else []


def moved_along(group: Group, found: Curve) -> Moved | None:
    """Return the slope of each question's log-odds along a curve, by least squares, summed up.

    The unsteered model stands at strength 0. None where the dial is no strength, or a record lacks log-odds.
    """
    plain = _unsteered(group)
    if plain is None or not _is_strength(found):
        return None
    tables = [_log_odds(row.records) for row in (plain, *found.rows)]
    if any(table is None for table in tables):
        return None
    strengths = np.array([0.0, *found.values])
    away = strengths - strengths.mean()
    slopes = away @ np.array(tables) / float(away @ away)
    order = order_of(scores_of(plain.records[0]))
    gap = Gaps(order.ids, order.groups, slopes, slopes[None, :1], slopes[None])
    return Moved(intervals([gap])[0], float(slopes.std(ddof=1)), float((slopes < 0).mean()))


def _log_odds(records: Sequence[Record]) -> Any:
    """Return the log-odds of each question, mean over the seeds, in the order of the ids; None where one lacks them."""
    tables = [scores_of(record) for record in records]
    if not all(table.has(LOG_ODDS) for table in tables):
        return None
    return np.mean([table.numbers(LOG_ODDS)[order_of(table).rows] for table in tables], axis=0)


def score_panel(group: Group, number: int, found: Curve, score: str) -> Panel | None:
    """Return the mean of a score over a curve, behind its intervals; None where a record has no such score."""
    plain = _unsteered(group)
    start = {0.0: plain} if plain and _is_strength(found) else {}
    rows: Mapping[float, Row] = start | dict(zip(found.values, found.rows, strict=True))
    told = {value: mean_over_questions(row.records, score) for value, row in sorted(rows.items())}
    known = {value: interval for value, interval in told.items() if interval is not None}
    if len(known) < len(told):
        return None
    mean = Line([(value, interval.mean) for value, interval in known.items()], BLUE)
    spans = [
        Line([(value, interval.low), (value, interval.high)])
        for value, interval in known.items()
        if interval.low is not None and interval.high is not None
    ]
    level = plain.number(score) if plain else None
    label = f"{COLUMNS[score].title} of {found.label} over {found.dial}, with 95 % intervals over the questions"
    return Panel(f"{group.name}-{score}{number}", label, [*spans, mean], level)


def _unsteered(group: Group) -> Row | None:
    return next((row for row in group.rows if row.is_unsteered), None)


def _is_strength(found: Curve) -> bool:
    return found.dial.rpartition(".")[2] in STRENGTHS


def _told(found: Interval) -> str:
    ends = "" if found.low is None or found.high is None else f" ({found.low:z.2f} to {found.high:z.2f})"
    return f"{found.mean:z.2f}{ends}"
