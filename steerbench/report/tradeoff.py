"""Gain against damage over strength: what a steering gains grows with its strength, what it breaks with the square.

Wolf et al., Tradeoffs Between Alignment and Helpfulness in Language Models with Representation Engineering
(arXiv:2401.16332), derive and measure that alignment grows linearly and helpfulness falls quadratically with the norm
of what is added. A curve is summed up so, by `gain(s) = a s - b s^2`, for each score.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from steerbench.records.columns import COLUMNS, GAINS
from steerbench.records.regression import coefficients, interval_ends, moments, resampled_coefficients
from steerbench.records.scores import Scores
from steerbench.records.statistics import Gaps, Interval, clusters_of, gaps
from steerbench.report.curves import Curve
from steerbench.report.details import Table
from steerbench.report.groups import Group

STRENGTHS = ("strength", "relative_norm")
"""Hyperparameters that are strengths: the length of what is added grows with them from zero, where nothing is."""


class Tradeoff(NamedTuple):
    """The curve of one score over one strength, `linear * s - quadratic * s^2`."""

    score: str
    linear: Interval
    """Gain per unit of strength."""
    quadratic: Interval
    """Loss per unit of strength, squared."""
    explained: float
    """Share of the variance of the mean gains between strengths, 1 at best; below 0 their mean would do better."""
    best: Interval | None
    """Strength of the highest gain; None where a or b is not surely above zero, or it was not measured so far."""

    def at(self, strength: float) -> float:
        """Return the gain at a strength."""
        return self.linear.mean * strength - self.quadratic.mean * strength**2


def tradeoffs(group: Group, found: Sequence[Curve]) -> list[list[Tradeoff]]:
    """Return for each curve the fits of the scores that all its records and the unsteered ones beside them have.

    Least squares over all prompts and strengths, through zero at strength zero, with 95 % intervals from prompts
    resampled in clusters. None is there where the hyperparameter is no strength (`STRENGTHS`).
    """
    unsteered = {r.seed: Scores(r.examples) for row in group.rows if row.is_unsteered for r in row.records}
    measured = [(i, m) for i, one in enumerate(found) if _is_strength(one) for m in _measured(one, unsteered)]
    draws = resampled_coefficients([m.cells for _, m in measured]) if measured else None  # at once: that takes the time
    fits: list[list[Tradeoff]] = [[] for _ in found]
    for k, (i, one) in enumerate(measured):
        fits[i].append(_fitted(one, None if len(one.cells) == 1 or draws is None else draws[:, k]))
    return fits


class _Measured(NamedTuple):
    """One score of a curve: strengths, mean gains, and what a fit needs of each cluster of prompts."""

    score: str
    strengths: Any
    means: Any
    cells: Any


def _is_strength(found: Curve) -> bool:
    return found.dial.rpartition(".")[2] in STRENGTHS


def _measured(found: Curve, unsteered: Mapping[int, Scores]) -> list[_Measured]:
    rows = [{record.seed: Scores(record.examples) for record in row.records} for row in found.rows]
    scores = {score: [_gaps(row, unsteered, score) for row in rows] for score in GAINS}
    known = {score: [gap for gap in row if gap is not None] for score, row in scores.items()}
    return [_of_score(score, found.values, row) for score, row in known.items() if len(row) == len(found.values)]


def _of_score(score: str, strengths: Sequence[float], found: Sequence[Gaps]) -> _Measured:
    codes = clusters_of(found[0])
    one = np.ones(len(codes))
    cells = sum(moments(s * one, -s * s * one, gap.values, codes) for s, gap in zip(strengths, found, strict=True))
    return _Measured(score, np.array(strengths), np.array([gap.values.mean() for gap in found]), cells)


def _gaps(row: Mapping[int, Scores], unsteered: Mapping[int, Scores], score: str) -> Gaps | None:
    steered = list(row.values())
    beside = [unsteered[seed] for seed in row if seed in unsteered]
    known = len(beside) == len(steered) and all(_has(table, score) for table in (*steered, *beside))
    return gaps(steered, beside, score) if known else None


def _has(table: Scores, score: str) -> bool:
    return "id" in table and "group" in table and table.has(score)


def _fitted(found: _Measured, draws: Any) -> Tradeoff:
    """Fit a score; `draws` are the coefficients in resamples, (resamples, 2), or None where nothing can vary."""
    linear, quadratic = (float(x) for x in coefficients(found.cells.sum(axis=0)))
    s, means = found.strengths, found.means
    residuals = means - linear * s + quadratic * s**2
    explained = 1 - float(residuals @ residuals) / (float(((means - means.mean()) ** 2).sum()) or 1.0)
    if draws is None:
        return Tradeoff(found.score, Interval(linear, None, None), Interval(quadratic, None, None), explained, None)
    gain, loss = Interval(linear, *interval_ends(draws[:, 0])), Interval(quadratic, *interval_ends(draws[:, 1]))
    is_sure = min(gain.low or 0.0, loss.low or 0.0) > 0 and linear / quadratic / 2 <= s.max()
    best = Interval(linear / quadratic / 2, *interval_ends(draws[:, 0] / draws[:, 1] / 2)) if is_sure else None
    return Tradeoff(found.score, gain, loss, explained, best)


def tradeoff_table(found: Sequence[Curve], fits: Sequence[Sequence[Tradeoff]]) -> Table:
    """Return the figures of all fits as cells; empty where there is none."""
    rows = [
        [
            curve.label,
            curve.dial,
            COLUMNS[one.score].title,
            _told(one.linear),
            _told(one.quadratic),
            "–" if one.best is None else f"{_told(one.best)}: {one.at(one.best.mean):+z.2f}",
            f"{one.explained:z.2f}",
        ]
        for curve, several in zip(found, fits, strict=True)
        for one in several
    ]
    heads = ["method", "s", "score", "gain a per s", "loss b per s²", "best s: gain there", "explained"]
    return [heads, *rows] if rows else []


def _told(found: Interval) -> str:
    ends = "" if found.low is None or found.high is None else f" ({found.low:z.2f} to {found.high:z.2f})"
    return f"{found.mean:z.2f}{ends}"
