"""What a steering does to given answers: gains of their scores, steerability, and damage to a capability.

All are differences from the unsteered model on the same questions, with intervals over the questions.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from steerbench.plugins.spec import UNSTEERED
from steerbench.records.columns import CHOICE_COLUMNS, CHOICE_SCORES
from steerbench.records.record import Record
from steerbench.records.scores import scores_of
from steerbench.records.statistics import TOLERANCE, Gaps, Interval, gaps, intervals, order_of

Numbers = dict[str, float | None]
LOG_ODDS = "matching_log_odds"
"""Column of a record's examples: of the matching answer, in nats."""


def choice_gains(
    rows: Mapping[str, Sequence[Record]], unsteered: Mapping[int, Record], seeded: Mapping[str, bool]
) -> dict[str, Numbers]:
    """Return for each row of a task's table the columns `CHOICE_COLUMNS`, None where there is nothing to tell.

    `unsteered` is the record of the unsteered model for each seed, and `seeded` says of which rows another seed may
    give another steering.
    """
    found: dict[str, Numbers] = {name: dict.fromkeys(CHOICE_COLUMNS) for name in rows}
    for score in CHOICE_SCORES:
        _put(found, f"{score}_gain", _differ(rows, unsteered, seeded, score))
    moved = _differ(rows, unsteered, seeded, LOG_ODDS)
    _put(found, "steerability", moved)
    for name, gap in moved.items():
        if rows[name][0].method != UNSTEERED:
            found[name]["anti_steerable"] = float((gap.values < -TOLERANCE).mean())
    _put(found, "damage", _damage(rows, unsteered, seeded))
    for name, records in rows.items():
        found[name]["capability"] = _capability(records)
    return found


def mean_over_questions(records: Sequence[Record], score: str) -> Interval | None:
    """Return the mean of a score with its 95 % interval over the questions, averaged over the records' seeds.

    None where a record lacks it.
    """
    tables = [scores_of(record) for record in records]
    if not tables or not all("id" in table and "group" in table and table.has(score) for table in tables):
        return None
    order = order_of(tables[0])
    values = np.array([table.numbers(score)[order_of(table).rows] for table in tables])
    return intervals([Gaps(order.ids, order.groups, values.mean(axis=0), values[:, :1], values)])[0]


def differences_of(records: Sequence[Record], unsteered: Mapping[int, Record], score: str, seeded: bool) -> Gaps | None:
    """Return how much higher a score is on each question than without steering; None where a record lacks it."""
    if not all(record.seed in unsteered for record in records):
        return None
    steered = [scores_of(record) for record in records]
    plain = [scores_of(unsteered[record.seed]) for record in records]
    has = all("id" in table and "group" in table and table.has(score) for table in (*steered, *plain))
    return gaps(steered, plain, score, seeded=seeded) if has else None


def _differ(
    rows: Mapping[str, Sequence[Record]], unsteered: Mapping[int, Record], seeded: Mapping[str, bool], score: str
) -> dict[str, Gaps]:
    found = {name: differences_of(records, unsteered, score, seeded[name]) for name, records in rows.items()}
    return {name: gap for name, gap in found.items() if gap is not None}


def _put(found: Mapping[str, Numbers], column: str, differ: Mapping[str, Gaps]) -> None:
    told = intervals(list(differ.values())) if differ else []
    for name, interval in zip(differ, told, strict=True):
        found[name] |= {f"{column}{end}": value for end, value in zip(("", "_low", "_high"), interval, strict=True)}


def _checked(record: Record | None) -> list[float]:
    """Return the scores of the questions of the capability check; empty where a record has none."""
    kept = record.report.get("capability") if record else None
    return list(kept["scores"]) if isinstance(kept, Mapping) else []


def _capability(records: Sequence[Record]) -> float | None:
    known = [scores for scores in map(_checked, records) if scores]
    return fmean(map(fmean, known)) if len(known) == len(records) else None


def _damage(
    rows: Mapping[str, Sequence[Record]], unsteered: Mapping[int, Record], seeded: Mapping[str, bool]
) -> dict[str, Gaps]:
    """Return how much lower each row scores on the questions of the capability check, which all rows share."""
    found: dict[str, Gaps] = {}
    for name, records in rows.items():
        plain = [unsteered[record.seed] for record in records if record.seed in unsteered]
        lost = capability_gaps(plain, records, seeded[name]) if len(plain) == len(records) else None
        if lost is not None:
            found[name] = lost
    return found


def capability_gaps(first: Sequence[Record], second: Sequence[Record], seeded: bool) -> Gaps | None:
    """Return first minus second on each question of the capability check; None where a record had none."""
    pairs = [(_checked(one), _checked(other)) for one, other in zip(first, second, strict=True)]
    if not all(one and other for one, other in pairs):
        return None
    differ: Any = np.array([np.subtract(one, other) for one, other in pairs], float)
    ids = [str(i) for i in range(differ.shape[1])]
    return Gaps(ids, ids, differ.mean(axis=0), differ.mean(axis=1, keepdims=True), differ, seeded)


def anti_steerable_gaps(first: Sequence[Record], second: Sequence[Record], seeded: bool) -> Gaps | None:
    """Return 1 for each question whose log-odds of the matching answer the first lowers, else 0; None without them."""
    if not all(scores_of(record).has(LOG_ODDS) for record in (*first, *second)):
        return None
    moved = gaps([scores_of(one) for one in first], [scores_of(one) for one in second], LOG_ODDS, seeded=seeded)
    down: Any = (moved.of_seeds < -TOLERANCE).astype(float)
    return moved._replace(values=down.mean(axis=0), by_seed=down.mean(axis=1, keepdims=True), of_seeds=down)
