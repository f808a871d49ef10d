"""Curves over one hyperparameter: records that differ in nothing else, and tuning trials on validation prompts."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from steerbench.plugins.spec import part_labels
from steerbench.records.identity import fingerprint
from steerbench.records.record import Record
from steerbench.report.groups import Group, Row, finite

LEAST = 3
"""Points of a curve; with fewer it is no curve."""


class Curve(NamedTuple):
    """Methods that differ in one number."""

    label: str
    dial: str
    values: list[float]
    rows: list[Row]


class Trials(NamedTuple):
    """The guiding reward of the tuning trials of one method over its only number, on validation prompts."""

    row: Row
    dial: str
    unsteered: float | None
    """Mean over the seeds."""
    values: list[float]
    mean: list[float]
    """Mean over the seeds, one for each value."""
    seeds: list[list[float | None]]
    """For each seed one score per value."""
    chosen: list[float]
    """The value that each seed chose."""


def sweeps(group: Group) -> list[Curve]:
    """Return the curves that the untuned records of a group make, in the order of their best row."""
    found: dict[tuple[str, str], list[tuple[float, Row]]] = defaultdict(list)
    for row in group.rows:
        if not row.records[0].tuning:
            for dial, value in _numbers(row.records[0]).items():
                found[_without(row.records[0], dial), dial].append((value, row))
    return [_curve(dial, points) for (_, dial), points in found.items() if len({v for v, _ in points}) >= LEAST]


def tuned(group: Group) -> list[Trials]:
    """Return the curves of tuning trials in which one number varies and nothing else."""
    return [trials for row in group.rows if (trials := _trials(row))]


def _curve(dial: str, points: Sequence[tuple[float, Row]]) -> Curve:
    in_order = sorted(points, key=lambda point: (point[0], point[1].method))
    # the dial is written below the panel, and its value is no part of the name
    label = re.sub(rf":{re.escape(dial.rpartition('.')[2])}=[^:+]+", "", in_order[0][1].method)
    return Curve(label, dial, [value for value, _ in in_order], [row for _, row in in_order])


def _numbers(record: Record) -> dict[str, float]:
    """Return the hyperparameters that are numbers."""
    values = ((name, finite(value)) for name, value in _hyperparameters(record).items())
    return {name: value for name, value in values if value is not None}


def _without(record: Record, dial: str) -> str:
    """Return a hash of what makes a method, but for one hyperparameter."""
    sources = [[part["name"], part["source"]] for part in record.parts]
    rest = {name: value for name, value in _hyperparameters(record).items() if name != dial}
    return fingerprint([sources, rest, record.steerbench])


def _hyperparameters(record: Record) -> dict[str, Any]:
    """Return all hyperparameters, named as tuning names them: by part where there are several."""
    labels = part_labels([part["name"] for part in record.parts])
    return {
        f"{label}.{name}" if len(labels) > 1 else name: value
        for label, part in zip(labels, record.parts, strict=True)
        for name, value in part["hyperparameters"].items()
    }


def _trials(row: Row) -> Trials | None:
    tunings = [record.tuning for record in row.records if record.tuning.get("trials")]
    scored = [[t for t in tuning["trials"] if _reward(t) is not None] for tuning in tunings]
    dials = {tuple(t["hyperparameters"]) for trials in scored for t in trials}
    if len(dials) != 1 or len(dial := next(iter(dials))) != 1:
        return None
    # a default that is no number, such as a layer that the method finds, has no place on the axis
    scores = [
        {value: _reward(t) or 0.0 for t in trials if (value := finite(t["hyperparameters"][dial[0]])) is not None}
        for trials in scored
    ]
    values = sorted({value for seed in scores for value in seed})
    if len(values) < LEAST:
        return None
    unsteered = [reward for tuning in tunings if (reward := _unsteered(tuning)) is not None]
    return Trials(
        row=row,
        dial=dial[0],
        unsteered=fmean(unsteered) if unsteered else None,
        values=values,
        mean=[fmean(seed[value] for seed in scores if value in seed) for value in values],
        seeds=[[seed.get(value) for value in values] for seed in scores],
        chosen=[c for tuning in tunings if (c := finite((tuning.get("chosen") or {}).get(dial[0]))) is not None],
    )


def _reward(trial: Mapping[str, Any]) -> float | None:
    """Return the mean guiding reward; a trial without it has an objective that is just that."""
    return finite(trial.get("reward", trial.get("score")))


def _unsteered(tuning: Mapping[str, Any]) -> float | None:
    scores = tuning.get("unsteered")
    return _reward(scores) if isinstance(scores, Mapping) else finite(scores)
