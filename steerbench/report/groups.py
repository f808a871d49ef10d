"""Records that may be compared: one task, one protocol. Nothing is ranked or drawn across two groups."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from string import ascii_uppercase
from typing import Any

from steerbench import testbed
from steerbench.plugins.spec import UNSTEERED
from steerbench.records.identity import Difference, Key, differences, fingerprint
from steerbench.records.leaderboard import leaderboard, rows_of
from steerbench.records.record import Record

_TELLING = ("match_kl", "tuning_budget", "temperature", "n_samples", "max_new_tokens", "n_examples", "n_train", "seeds")
"""Fields that tell protocols apart best."""
_SHORT = 12
"""Characters of a value that a title has room for."""


@dataclass(frozen=True)
class Row:
    """One method of a group: its row of the leaderboard and its records."""

    key: str
    """Letters that stand for it in the plots."""
    values: dict[str, Any]
    records: list[Record]

    @property
    def method(self) -> str:
        """The method as the leaderboard names it."""
        return str(self.values["method"])

    @property
    def is_unsteered(self) -> bool:
        """Whether it is the unsteered model."""
        return self.records[0].method == UNSTEERED

    def number(self, column: str) -> float | None:
        """Return a number of the leaderboard, 1 and 0 for true and false, or None where it has none."""
        value = self.values.get(column)
        return float(value) if isinstance(value, bool) else finite(value)


@dataclass(frozen=True)
class Group:
    """The records of one task and protocol, with their leaderboard."""

    name: str
    """Unique in a page; letters, digits and hyphens."""
    title: str
    differs: list[str]
    """In what its protocol differs from that of the first group of the task."""
    rows: list[Row]

    @property
    def records(self) -> list[Record]:
        """All records, by row."""
        return [record for row in self.rows for record in row.records]

    @property
    def first(self) -> Record:
        """A record to ask for what is equal in all."""
        return self.rows[0].records[0]

    @property
    def task(self) -> str:
        """Readable name of the task."""
        return self.first.labels["task"]

    @property
    def is_main(self) -> bool:
        """Whether it has the main protocol of its task: the one that most records have."""
        return not self.differs

    @property
    def is_testbed(self) -> bool:
        """Whether the task is a testbed's."""
        return self.task.startswith(f"{testbed.NAME}-")

    def has(self, column: str) -> bool:
        """Tell whether any method has a number in a column."""
        return any(row.number(column) is not None for row in self.rows)


def grouped(records: Iterable[Record]) -> list[Group]:
    """Return the groups of records by task and protocol; in a task, the group with most records first."""
    unique = {record.identity: record for record in records}  # folders may overlap
    found: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in sorted(unique.values(), key=lambda r: (r.labels["task"], r.method, r.seed, r.identity)):
        found[record.labels["task"]][fingerprint(record.protocol)].append(record)
    groups = []
    for protocols in found.values():
        in_order = sorted(protocols.items(), key=lambda item: (-len(item[1]), item[0]))
        first = in_order[0][1][0].protocol
        groups += [_group(number, several, first) for number, (_, several) in enumerate(in_order)]
    return groups


def finite(value: Any) -> float | None:
    """Return a number as it is, and None for what is missing."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return float(value) if known else None


def letters(number: int) -> str:
    """Return A, B, ... Z, AA, AB, ... for 0, 1, ..."""
    ahead, last = divmod(number, len(ascii_uppercase))
    return (letters(ahead - 1) if ahead else "") + ascii_uppercase[last]


def _group(number: int, records: Sequence[Record], first: Key) -> Group:
    task = records[0].labels["task"]
    found = differences(first, records[0].protocol)
    of = rows_of(records)
    rows = leaderboard(records).astype(object).to_dict("records")
    return Group(
        name=f"{re.sub('[^A-Za-z0-9]+', '-', task)}-{fingerprint([task, records[0].protocol])[:8]}",
        title=f"{task} · {_told(found) or number + 1}" if number else task,
        differs=[str(difference) for difference in found],
        rows=[Row(letters(i), dict(values), of[values["method"]]) for i, values in enumerate(rows)],
    )


def _told(found: Sequence[Difference]) -> str:
    """Return in a few words how a protocol differs from the first one of its task; hashes say nothing."""
    short = [d for d in found if len(str(d.right)) <= _SHORT]
    in_order = sorted(short, key=lambda d: _TELLING.index(d.field) if d.field in _TELLING else len(_TELLING))
    return ", ".join(f"no {d.field}" if d.right is None else f"{d.field} {d.right}" for d in in_order[:2])
