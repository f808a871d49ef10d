"""Records of timings as tables: how long methods take beside the unsteered model, by batch and prompt length."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steerbench.latency.latency_record import load_latency
from steerbench.report.details import Table

FOLDER = "latency"
"""Where a folder of records keeps its timings."""
_PARTS = {
    "decode": "Decoding, time per token beside unsteered",
    "total": "All of a response, time beside unsteered",
    "prefill": "Prefill, time beside unsteered",
}


class Timing(NamedTuple):
    """One record of timings."""

    title: str
    facts: list[tuple[str, str]]
    tables: list[tuple[str, Table]]
    """For each part of a generation, a row for each method and a column for each cell of the grid."""


def timings_in(folders: Sequence[Path]) -> list[Timing]:
    """Return the timings below folders, by title and time. Raises SteerbenchError for a damaged file."""
    below = {place for folder in folders for place in (folder, *folder.rglob(FOLDER))}
    places = sorted(place for place in below if place.name == FOLDER and place.is_dir())
    records = [record for place in places for record in load_latency(place)]
    return [_timing(record) for record in sorted(records, key=lambda r: (r["model"]["name"], r["created"]))]


def _timing(record: Mapping[str, Any]) -> Timing:
    model, grid = record["model"], record["grid"]
    facts = [
        ("device", record["device"]),
        ("parameters", f"{model['parameters'] / 1e6:,.1f} M"),
        ("dtype", model["dtype"]),
        ("attention", model["attention"]),
        ("weights", model["weights"]),
        ("new tokens", grid["new_tokens"]),
        ("rounds", grid["rounds"]),
        ("measured", record["created"][:10]),
    ]
    tables = [(text, _table(record["cells"], part)) for part, text in _PARTS.items()]
    title = f"{model['name']} on {record['device']}"
    return Timing(title, [(name, str(value)) for name, value in facts], tables)


def _table(cells: Sequence[Mapping[str, Any]], part: str) -> Table:
    heads = [f"batch {cell['batch_size']}, prompt {cell['prompt_tokens']}" for cell in cells]
    methods = list(dict.fromkeys(arm["method"] for cell in cells for arm in cell["arms"]))
    arms = [{arm["method"]: arm for arm in cell["arms"]} for cell in cells]
    rows = [[method, *(_ratio(cell.get(method), part) for cell in arms)] for method in methods]
    return [["method", *heads], *(row for row in rows if any(row[1:]))]


def _ratio(arm: Mapping[str, Any] | None, part: str) -> str:
    """Return a ratio with its interval, or why there is none; nothing for the model that others are beside."""
    if arm is None:
        return ""
    if "problem" in arm:
        return str(arm["problem"]).splitlines()[-1]
    found = arm["ratios"].get(part)
    if found is None:
        return ""
    ends = "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"
    least = arm.get("decode_floor") if part == "decode" else None
    return f"{found['median']:.2f}{ends}{'' if least is None else f', floor {least:.2f}'}"
