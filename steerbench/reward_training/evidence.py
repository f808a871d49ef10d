"""How good a reward is on pairs of prompts that it has not seen, beside what length alone would give."""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from steerbench.data.task import Example
from steerbench.records.statistics import Gaps, intervals, wilson

_EQUAL = log(1.25)
"""Replies of nearly the same length: neither is longer than the other by more than a quarter."""
_BINS = 5


def evidence(examples: Sequence[Example], margins: Any, log_lengths: Any) -> dict[str, Any]:
    """Return the figures of held-out pairs: margins and log-length differences, chosen minus rejected, (pairs,)."""
    right, longer = _wins(margins), _wins(log_lengths)
    near = np.abs(log_lengths) <= _EQUAL
    figures: dict[str, Any] = {
        "pairs": len(examples),
        "groups": len({e.group for e in examples}),
        "accuracy": _interval(examples, right),
        "longer wins": _interval(examples, longer),
        "accuracy over longer wins": _interval(examples, right - longer),
        "correlation with log-length": round(correlation(margins, log_lengths), 4),
        "calibration": calibration(margins),
    }
    if near.sum() > 1:
        kept = [e for e, keep in zip(examples, near, strict=True) if keep]
        figures["accuracy at equal length"] = {"pairs": int(near.sum()), **_interval(kept, right[near])}
    return figures


def on_one_side(examples: Sequence[Example], ones: Any, others: Any) -> dict[str, float | None]:
    """Return how often two margins, (pairs,) each, have the same sign, with a 95 % interval."""
    return _interval(examples, _wins(ones * others))


def correlation(margins: Any, log_lengths: Any) -> float:
    """Return the correlation of both differences over all pairs in both orders, which have a mean of zero."""
    norm = float(np.linalg.norm(margins) * np.linalg.norm(log_lengths))
    return float(margins @ log_lengths) / norm if norm else 0.0


def calibration(margins: Any) -> dict[str, float]:
    """Return the slope that margins should be multiplied by, 1 where they are calibrated, and the expected error.

    The error is the mean gap between sigmoid(|margin|) and how often that side is right, over bins of equal size.
    """
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    right = _wins(margins)
    order = np.array_split(np.argsort(sure, kind="stable"), min(_BINS, len(sure)))
    error = sum(len(rows) * abs(float(sure[rows].mean() - right[rows].mean())) for rows in order) / len(sure)
    return {"slope": round(_slope(margins), 3), "expected error": round(error, 4)}


def _slope(margins: Any) -> float:
    spread = float(np.abs(margins).mean()) or 1.0
    signs = np.where(np.arange(len(margins)) % 2, 1.0, -1.0)
    if len(margins) < 2:
        return float("nan")
    model = LogisticRegression(C=1e6, fit_intercept=False).fit((margins * signs / spread)[:, None], signs > 0)
    return float(model.coef_[0, 0]) / spread


def probe_figures(scores: Any, probes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return for each probe how often the preferred reply beats it, with Wilson's interval, and whether it loses.

    `scores` are (prompts, 1 + probes), the preferred reply first. A probe loses where the whole interval is above a
    half.
    """
    found: dict[str, dict[str, Any]] = {}
    for i, probe in enumerate(probes):
        share = float(_wins(scores[:, 0] - scores[:, i + 1]).mean())
        low, high = wilson(share, len(scores))
        found[probe] = {"prompts": len(scores), "mean": share, "low": low, "high": high, "loses": low > 0.5}
    return found


def failing(probes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the probes that do not lose."""
    return [name for name, figures in probes.items() if not figures["loses"]]


def _wins(differences: Any) -> Any:
    """Return 1 where a difference is above zero, one half where there is none, (pairs,)."""
    return (np.sign(differences) + 1) / 2


def _interval(examples: Sequence[Example], values: Any) -> dict[str, float | None]:
    """Return a mean with its 95 % interval; pairs of one group are not independent."""
    order = sorted(range(len(examples)), key=lambda i: examples[i].id)
    ids, groups = [examples[i].id for i in order], [examples[i].group for i in order]
    rows = np.asarray(values, float)[order]
    return dict(intervals([Gaps(ids, groups, rows, np.array([[rows.mean()]]))])[0]._asdict())
