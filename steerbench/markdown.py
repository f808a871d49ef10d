"""The leaderboard in Markdown, for a README: one table per task, written between two marks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from steerbench.errors import SteerbenchError
from steerbench.output import write_whole
from steerbench.ranking import UNSTEERED

START, END = "<!-- leaderboard: written by steerbench leaderboard --markdown -->", "<!-- end of leaderboard -->"
SIGNIFICANT = 0.05
_GAINS = {"reward": "reward", "held_out_reward": "held-out", "gold": "gold"}
_MEANS = {
    "win_rate": "win",
    "worse": "worse",
    "kl": "KL",
    "diversity": "div.",
    "length": "length",
    "decode_ratio": "time ×",
}
_DECIMALS = {"length": 0, "kl": 3}


def markdown(table: pd.DataFrame) -> str:
    """Return one table per task: rank, gains over unsteered with 95 % intervals, and what they cost.

    A gain is bold where its p-value, corrected for the number of methods, is below `SIGNIFICANT`. Columns without a
    value are left out.
    """
    return "\n\n".join(_of_task(str(task), rows) for task, rows in table.groupby("task", sort=True))


def write_markdown(table: pd.DataFrame, path: Path) -> None:
    """Write the tables to a file; if it has the marks `START` and `END`, between them, and the rest stays as it is."""
    before, start, rest = (_text(path) or f"{START}{END}\n").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise SteerbenchError(f"{path} has no place for the tables; put {START} and {END} on lines of their own.")
    text = f"{START}\n\n{markdown(table)}\n\n{END}"
    write_whole(path, before + (text.replace("\n", "\r\n") if "\r\n" in before + after else text) + after)


def _text(path: Path) -> str:
    """Return what a file holds, line ends as they are; nothing if it is not there."""
    try:
        return path.read_bytes().decode("utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise SteerbenchError(f"cannot read {path} as UTF-8 ({error}); choose another file.") from error


def _of_task(task: str, rows: pd.DataFrame) -> str:
    gains = {name: head for name, head in _GAINS.items() if rows[f"{name}_gain"].notna().any()}
    means = {name: head for name, head in _MEANS.items() if rows[name].notna().any()}
    heads = ["#", task, *gains.values(), *means.values()]
    lines = [_line(heads), _line(["--:", ":--", *["--:"] * (len(heads) - 2)])]
    for row in rows.to_dict("records"):
        rank = "–" if pd.isna(row["rank"]) else str(row["rank"])
        cells = [_gain(row, name) for name in gains] + [_mean(row, name) for name in means]
        lines.append(_line([rank, f"`{row['method']}`", *cells]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _gain(row: Mapping[Any, Any], name: str) -> str:
    gain, low, high, p = (row[f"{name}_gain{end}"] for end in ("", "_low", "_high", "_p_holm"))
    if pd.isna(gain) or row["method"].split(" #")[0] == UNSTEERED:
        return ""
    shown = f"{gain:+z.2f}" if pd.isna(p) or p >= SIGNIFICANT else f"**{gain:+z.2f}**"
    return shown if pd.isna(low) else f"{shown} ({low:z.2f} to {high:z.2f})"


def _mean(row: Mapping[Any, Any], name: str) -> str:
    if pd.isna(row[name]):
        return "–"
    unmatched = name == "kl" and row["matched"] is False
    return f"{row[name]:.{_DECIMALS.get(name, 2)}f}{' (not matched)' if unmatched else ''}"
