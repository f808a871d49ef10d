"""What stands behind the numbers: the protocol, the tuning trials, the machines, and what papers reported."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from statistics import fmean
from typing import Any, NamedTuple

from steerbench.records.identity import fingerprint
from steerbench.records.record import Record
from steerbench.report.groups import Group, Row, finite

Table = list[list[str]]
"""Rows of cells; the first holds the heads."""

_TRIAL_NUMBERS = ("score", "reward", "diversity", "coherence", "length", "kl")


class Tuning(NamedTuple):
    """What was tried for one method on the validation split."""

    row: Row
    summary: str
    trials: Table


class Machine(NamedTuple):
    """An environment and how many records were made in it."""

    records: int
    fields: list[tuple[str, str]]


def protocol(group: Group) -> list[tuple[str, str, str]]:
    """Return every field of the protocol with its value and, where the records have one, a readable name."""
    labels = group.first.labels
    return [(name, _plain(value), _label(name, value, labels)) for name, value in group.first.protocol.items()]


def tunings(group: Group) -> list[Tuning]:
    """Return the tuning trials of the methods that were tuned, in the order of the ranking."""
    tuned = [row for row in group.rows if any(record.tuning.get("trials") for record in row.records)]
    return [_tuning(row) for row in tuned]


def machines(records: Iterable[Record]) -> list[Machine]:
    """Return the environments of records, the most frequent first."""
    found = Counter(json.dumps(record.environment, sort_keys=True) for record in records)
    in_order = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [Machine(n, [(k, _plain(v)) for k, v in json.loads(text).items()]) for text, n in in_order]


def left_out(group: Group) -> list[tuple[str, str]]:
    """Return what was left out, by reason; the same in all records of a protocol, or the largest count."""
    counts: dict[str, int] = {}
    for record in group.records:
        for reason, number in record.counts.items():
            counts[reason] = max(number, counts.get(reason, 0))
    return [(reason, str(number)) for reason, number in sorted(counts.items())]


def reported() -> dict[str, Table]:
    """Return the numbers that papers reported, by paper."""
    text = files("steerbench.report").joinpath("reported.csv").read_text(encoding="utf-8")
    found: dict[str, Table] = {}
    for row in csv.DictReader(text.splitlines()):
        paper = row.pop("paper")
        found.setdefault(paper, [list(row)]).append(list(row.values()))
    return found


def _tuning(row: Row) -> Tuning:
    records = [record for record in row.records if record.tuning.get("trials")]
    trials = [trial for record in records for trial in record.tuning["trials"]]
    numbers = [name for name in _TRIAL_NUMBERS if any(finite(trial.get(name)) is not None for trial in trials)]
    errors = ["error"] if any(trial.get("error") for trial in trials) else []
    rows = [
        [str(record.seed), _settings(trial["hyperparameters"]), *(_number(trial.get(name)) for name in numbers)]
        + [str(trial.get("error") or "") for _ in errors]
        + ["chosen" if _is_chosen(trial, record) else ""]
        for record in records
        for trial in record.tuning["trials"]
    ]
    return Tuning(row, _summary(records), [["seed", "hyperparameters", *numbers, *errors, ""], *rows])


def _summary(records: Sequence[Record]) -> str:
    """Return what was tuned for, on what, and how the unsteered model does there, by its mean over the seeds."""
    tuning = records[0].tuning
    told = f"objective {tuning.get('objective', '?')}, on {tuning.get('n', '?')} {tuning.get('split', '')} prompts"
    target = f", target {tuning['target']} nats per token" if "target" in tuning else ""
    seeds = [str(record.seed) for record in records if record.tuning.get("matched") is False]
    missed = f"; not matched with seed {', '.join(seeds)}" if seeds else ""
    return f"{told}{target}{missed}. Unsteered: {_unsteered([r.tuning.get('unsteered') for r in records])}."


def _unsteered(scores: Sequence[Any]) -> str:
    tables = [one if isinstance(one, Mapping) else {"score": one} for one in scores]
    known = {name: [n for one in tables if (n := finite(one.get(name))) is not None] for name in tables[0]}
    return ", ".join(f"{name} {_number(fmean(ns))}" for name, ns in known.items() if ns) or "not measured"


def _is_chosen(trial: Mapping[str, Any], record: Record) -> bool:
    return fingerprint(trial["hyperparameters"]) == fingerprint(record.tuning.get("chosen"))


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_plain(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    number = finite(value)
    return "" if number is None else f"{number:z.3f}"


def _label(name: str, value: Any, labels: Mapping[str, str]) -> str:
    label = labels.get(name) or ""
    return "" if label == value else label


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
