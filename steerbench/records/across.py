"""What methods gain in several studies, side by side: at several strengths, on several models, on other data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from steerbench.errors import SteerbenchError, suggest
from steerbench.plugins.spec import UNSTEERED
from steerbench.records.columns import COLUMNS, GAINS
from steerbench.records.damage import LeftOut
from steerbench.records.leaderboard import leaderboard
from steerbench.records.markdown import gain_text, table_line
from steerbench.records.store import records_in

START, END = "<!-- across: written by steerbench across --markdown -->", "<!-- end of across -->"


class Across(NamedTuple):
    """The methods of one task in several studies."""

    task: str
    metric: str
    studies: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Of each method, the one that gains most in any study first: its row of the leaderboard, by study."""

    def gain(self, method: str, study: str) -> tuple[float, float, float] | None:
        """Return what a method gains in a study with its 95 % interval; None where it was not measured."""
        row = self.rows[method].get(study)
        if row is None:
            return None
        mean, low, high = (float(row[f"{self.metric}_gain{end}"]) for end in ("", "_low", "_high"))
        return mean, low, high

    def times(self, method: str) -> tuple[float, float] | None:
        """Return the least and the most time of decoding beside the unsteered model, over the studies."""
        found = [float(row["decode_ratio"]) for row in self.rows[method].values()]
        known = [one for one in found if not pd.isna(one)]
        return (min(known), max(known)) if known else None


def across(folders: Sequence[Path], metric: str, left_out: LeftOut | None = None) -> list[Across]:
    """Return the gains of a metric over the unsteered model, for each task of all folders; each folder is a study.

    Raises SteerbenchError for a metric that is no gain's, and where no study has it.
    """
    gains = gains_of(folders, metric, left_out)
    tasks = sorted({str(task) for table in gains.values() for task in table["task"]})
    if not tasks:
        raise SteerbenchError(f"none of these has gains of {metric}; give other folders, or another --metric.")
    return [_of_task(task, metric, gains) for task in tasks]


def gains_of(folders: Sequence[Path], metric: str, left_out: LeftOut | None = None) -> dict[str, pd.DataFrame]:
    """Return for each folder, by its name, or its path where two have the same, the methods that have a gain.

    Rows and columns are those of the leaderboard, the unsteered model is no method. Raises SteerbenchError for a metric
    that is no gain's.
    """
    if metric not in GAINS:
        raise SteerbenchError(suggest("metric", metric, list(GAINS)))
    names = [folder.name for folder in folders]
    found = {}
    for folder, name in zip(folders, names, strict=True):
        table = leaderboard(records_in([folder], left_out))
        steered = table["method"].map(lambda method: method.split(" #")[0] != UNSTEERED)
        found[str(folder) if names.count(name) > 1 else name] = table[steered & table[f"{metric}_gain"].notna()]
    return found


def _of_task(task: str, metric: str, gains: Mapping[str, pd.DataFrame]) -> Across:
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    studies = {name: table[table["task"] == task].to_dict("records") for name, table in gains.items()}
    for name, rows in studies.items():
        for row in rows:
            found.setdefault(str(row["method"]), {})[name] = {str(key): value for key, value in row.items()}
    order = sorted(found, key=lambda method: -max(row[f"{metric}_gain"] for row in found[method].values()))
    return Across(task, metric, tuple(name for name, rows in studies.items() if rows), {m: found[m] for m in order})


def markdown(found: Sequence[Across]) -> str:
    """Return one table per task: a line for each method and a column for each study, and what it costs in time."""
    return "\n\n".join("\n".join(_lines(one)) for one in found)


def _lines(one: Across) -> list[str]:
    heads = [f"{COLUMNS[one.metric].title}, {one.task}", *one.studies, COLUMNS["decode_ratio"].heading]
    body = [[f"`{name}`", *(_cell(one, name, study) for study in one.studies), _times(one, name)] for name in one.rows]
    return [table_line(heads), table_line([":--", *["--:"] * (len(heads) - 1)]), *map(table_line, body)]


def _cell(one: Across, method: str, study: str) -> str:
    row = one.rows[method].get(study)
    if row is None:
        return ""
    own_kl = f" at {row['kl']:.{COLUMNS['kl'].digits}f} nats" if row["matched"] is False and pd.notna(row["kl"]) else ""
    return gain_text(row, f"{one.metric}_gain") + own_kl


def _times(one: Across, method: str) -> str:
    times = one.times(method)
    if times is None:
        return ""
    low, high = (f"{time:.{COLUMNS['decode_ratio'].digits}f}" for time in times)
    return low if low == high else f"{low} to {high}"
