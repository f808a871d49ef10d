"""What the browser of generations shows, as JSON that cannot leave its element. Each text is kept once."""

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steerbench.records.record import Record
from steerbench.report.groups import Group, Row, finite

SCORES = ("reward", "held_out_reward", "gold")
ROOM = 300_000
"""Bytes that the generations of a page take unless it is said how many there are to be."""
_TEXTS = {"id", "prompt", "response"}
_DIGITS = 4  # a tie of rewards is within 1e-4


class _Pool:
    """Texts, each kept once and known by its number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))

    @property
    def texts(self) -> list[str]:
        return list(self.numbers)


def generations(groups: Sequence[Group], n_examples: int | None = None) -> list[dict[str, Any]]:
    """Return the generations of groups for the first prompts of each, with what there is in all.

    `n_examples` says how many prompts of each group. Without it they are chosen to be at most `ROOM` bytes, of the main
    protocol of each task: all runs and prompts if they fit, else the first run of each method, and as many prompts as
    do.
    A run of a method is a seed and a sample; its rows are in the order of the prompts, each `[text, reward, held-out
    reward, gold]` with the number of the text, or None where the record has no such prompt.
    """
    if n_examples is not None:
        return [_of(group, prompts, n_examples) for group in groups if (prompts := _prompts(group.records))]
    held = [(group, prompts) for group in groups if group.is_main and (prompts := _prompts(group.records))]
    return [_fitting(group, prompts, ROOM // len(held)) for group, prompts in held]


def _fitting(group: Group, prompts: Mapping[str, str], room: int) -> dict[str, Any]:
    """Return as many generations of a group as there is room for, of one prompt at the least."""

    n = bisect_right(range(1, len(prompts) + 1), room, key=lambda n: len(as_json(_of(group, prompts, n, first=True))))
    if n == len(prompts) and len(as_json(whole := _of(group, prompts, n))) <= room:
        return whole
    return _of(group, prompts, max(n, 1), first=True)


def as_json(value: Any) -> str:
    """Return JSON for a script element: ASCII alone, and no character that HTML could read as its own."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character, escape in _ESCAPES.items():  # one by one: a page of many records has 100 million characters
        text = text.replace(character, escape)
    return text


_ESCAPES = {character: f"\\u{ord(character):04x}" for character in "<>&'"}


def _of(group: Group, prompts: Mapping[str, str], n: int, first: bool = False) -> dict[str, Any]:
    """Return the generations of the first `n` prompts, of all runs or the first one of each method."""
    shown = dict(list(prompts.items())[:n])
    pool = _Pool()
    methods = [
        {
            "key": row.key,
            "name": row.method,
            "unsteered": row.is_unsteered,
            "runs": _of_row(row, list(shown), pool, first),
        }
        for row in group.rows
    ]
    return {
        "title": group.title,
        "total": len(prompts),
        "first": first,
        "prompts": list(shown.values()),
        "methods": methods,
        "texts": pool.texts,
    }


def _of_row(row: Row, ids: Sequence[str], pool: _Pool, first: bool) -> list[dict[str, Any]]:
    told = [record for record in row.records if _has_texts(record)]
    return [run for record in (told[:1] if first else told) for run in _runs(record, ids, pool, first)]


def _prompts(records: Iterable[Record]) -> dict[str, str]:
    """Return the prompts by id, in the order of the first record that has them."""
    found: dict[str, str] = {}
    for record in records:
        if _has_texts(record):
            examples = record.examples
            for key, prompt in zip(examples["id"], examples["prompt"], strict=True):
                found.setdefault(str(key), str(prompt))
    return found


def _runs(record: Record, ids: Sequence[str], pool: _Pool, first: bool) -> list[dict[str, Any]]:
    table = record.examples
    found: dict[int, dict[str, list[Any]]] = {}
    wanted = frozenset(ids)
    columns = [table[name].tolist() if name in table else [None] * len(table) for name in ("sample", *SCORES)]
    start = min((int(finite(sample) or 0) for sample in columns[0]), default=0)
    for key, text, sample, *scores in zip(table["id"], table["response"], *columns, strict=True):
        number = int(finite(sample) or 0)
        if str(key) in wanted and (number == start or not first):
            found.setdefault(number, {})[str(key)] = [pool.number(str(text)), *map(_rounded, scores)]
    return [
        {"seed": record.seed, "sample": sample, "rows": [rows.get(key) for key in ids]}
        for sample, rows in sorted(found.items())
    ]


def _has_texts(record: Record) -> bool:
    return {*record.examples} >= _TEXTS


def _rounded(value: Any) -> float | None:
    number = finite(value)
    return None if number is None else round(number, _DIGITS)
