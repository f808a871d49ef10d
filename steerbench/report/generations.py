"""What the browser of generations shows, as JSON that cannot leave its element. Each text is kept once."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from steerbench.records.record import Record
from steerbench.report.groups import Group, finite

SCORES = ("reward", "held_out_reward", "gold")
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


def generations(groups: Sequence[Group], n_examples: int) -> list[dict[str, Any]]:
    """Return the generations of groups for the first prompts of each, with what there is in all.

    A run of a method is a seed and a sample; its rows are in the order of the prompts, each `[text, reward, held-out
    reward, gold]` with the number of the text, or None where the record has no such prompt.
    """
    return [found for group in groups if (found := _of(group, n_examples))]


def as_json(value: Any) -> str:
    """Return JSON for a script element: ASCII alone, and no character that HTML could read as its own."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character, escape in _ESCAPES.items():  # one by one: a page of many records has 100 million characters
        text = text.replace(character, escape)
    return text


_ESCAPES = {character: f"\\u{ord(character):04x}" for character in "<>&'"}


def _of(group: Group, n_examples: int) -> dict[str, Any] | None:
    prompts = _prompts(group.records)
    if not prompts:
        return None
    shown = dict(list(prompts.items())[:n_examples])
    pool = _Pool()
    methods = [
        {
            "key": row.key,
            "name": row.method,
            "unsteered": row.is_unsteered,
            "runs": [run for record in row.records for run in _runs(record, list(shown), pool)],
        }
        for row in group.rows
    ]
    return {
        "title": group.title,
        "total": len(prompts),
        "prompts": list(shown.values()),
        "methods": methods,
        "texts": pool.texts,
    }


def _prompts(records: Iterable[Record]) -> dict[str, str]:
    """Return the prompts by id, in the order of the first record that has them."""
    found: dict[str, str] = {}
    for examples in (record.examples for record in records):
        if {"id", "prompt", "response"} <= {*examples}:
            for key, prompt in zip(examples["id"], examples["prompt"], strict=True):
                found.setdefault(str(key), str(prompt))
    return found


def _runs(record: Record, ids: Sequence[str], pool: _Pool) -> list[dict[str, Any]]:
    table = record.examples
    if not {"id", "prompt", "response"} <= {*table}:
        return []
    found: dict[int, dict[str, list[Any]]] = {}
    wanted = frozenset(ids)
    columns = [table[name].tolist() if name in table else [None] * len(table) for name in ("sample", *SCORES)]
    for key, text, sample, *scores in zip(table["id"], table["response"], *columns, strict=True):
        if str(key) in wanted:
            cells = [pool.number(str(text)), *map(_rounded, scores)]
            found.setdefault(int(finite(sample) or 0), {})[str(key)] = cells
    return [
        {"seed": record.seed, "sample": sample, "rows": [rows.get(key) for key in ids]}
        for sample, rows in sorted(found.items())
    ]


def _rounded(value: Any) -> float | None:
    number = finite(value)
    return None if number is None else round(number, _DIGITS)
