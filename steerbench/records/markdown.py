"""The leaderboard in Markdown, for a README: one table per task, written between two marks."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from steerbench.errors import SteerbenchError
from steerbench.files import write_asked
from steerbench.plugins.spec import UNSTEERED
from steerbench.records.columns import CHOICE_SCORES, COLUMNS, GAINS
from steerbench.records.side_effects import AGREEMENTS, FAR_KL

START, END = "<!-- leaderboard: written by steerbench leaderboard --markdown -->", "<!-- end of leaderboard -->"
SIGNIFICANT = 0.05
_AT_THE_END = (
    "\n† Tuning chose a value at an end of its range, with one seed at least: a better one may lie beyond; the column "
    "`at_the_end` of the CSV says which."
)
_FAR = "\n‡ More than one nat per token from the unsteered model: it mostly gives other tokens, whatever they score."
_MEANS = (
    *CHOICE_SCORES,
    *("anti_steerable", "over_refusal", "harmful_compliance", "damage"),
    *("win_rate", "worse", "kl", "diversity", "length", "decode_ratio", "decode_floor"),
)
"""What a README shows beside the gains."""


def markdown(table: pd.DataFrame, rows: int | None = None) -> str:
    """Return one table per task: rank, gains over unsteered with 95 % intervals, and what they cost.

    A gain is bold where its p-value, corrected for the number of methods, is below `SIGNIFICANT`. A method is marked
    where it has one seed and another may have given another steering: its gains have no p-value. Columns without a
    value are left out. With `rows` there is one table of so many, and a line that counts the others: see `_first`.
    """
    shown = table if rows is None else _first(table, rows)
    tables = [_of_task(str(task), found) for task, found in shown.groupby("task", sort=True)]
    left = [(task, len(found) - (shown["task"] == task).sum()) for task, found in table.groupby("task", sort=True)]
    counts = [f"{count} rows of `{task}`" for task, count in left if count]
    return "\n\n".join([*tables, *([f"Left out: {', '.join(counts)}."] if counts else [])])


def _first(table: pd.DataFrame, rows: int) -> pd.DataFrame:
    """Return the first rows of the first task, the unsteered model always among them."""
    first = table[table["task"] == table["task"].min()]
    unsteered = first["method"].map(_is_unsteered)
    return first[unsteered | ((~unsteered).cumsum() <= rows - unsteered.sum())]


def write_markdown(table: pd.DataFrame, path: Path, rows: int | None = None) -> None:
    """Write the tables to a file; if it has the marks `START` and `END`, between them, and the rest stays as it is."""
    write_between(path, START, END, markdown(table, rows))


def write_between(path: Path, start: str, end: str, text: str) -> None:
    """Write a text between two marks of a file, which is made if it is not there.

    Raises SteerbenchError if it is there without the marks, or cannot be read or written.
    """
    try:
        old = path.read_bytes().decode("utf-8") if path.exists() else ""  # line ends as they are
    except (OSError, UnicodeDecodeError) as error:
        raise SteerbenchError(f"cannot read {path} as UTF-8 ({error}); choose another file.") from error
    before, has_start, rest = (old or f"{start}{end}\n").partition(start)
    _, has_end, after = rest.partition(end)
    if not (has_start and has_end):
        raise SteerbenchError(f"{path} has no place for the tables; put {start} and {end} on lines of their own.")
    new = f"{start}\n\n{text}\n\n{end}"
    write_asked(path, before + (new.replace("\n", "\r\n") if "\r\n" in before + after else new) + after)


def table_line(cells: Sequence[str]) -> str:
    """Return a line of a table in Markdown."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _of_task(task: str, rows: pd.DataFrame) -> str:
    gains = [name for name in GAINS if rows[f"{name}_gain"].notna().any()]
    means = [name for name in _MEANS if name in rows and rows[name].notna().any()]
    heads = ["#", task, *(COLUMNS[name].title for name in gains), *(COLUMNS[name].heading for name in means)]
    lines = [table_line(heads), table_line(["--:", ":--", *["--:"] * (len(heads) - 2)])]
    for row in rows.to_dict("records"):
        rank = "–" if pd.isna(row["rank"]) else str(row["rank"])
        cells = [gain_text(row, f"{name}_gain") for name in gains] + [_mean(row, name) for name in means]
        marked = " (one seed)" if pd.isna(row["fits"]) else ""
        at_the_end = "" if pd.isna(row["at_the_end"]) else " †"
        lines.append(table_line([rank, f"`{row['method']}`{marked}{at_the_end}", *cells]))
    notes = ((_AT_THE_END, rows["at_the_end"].notna()), (_FAR, rows["kl"].astype(float) > FAR_KL))
    agreed = (f"\n{text}" for text in agreements(rows))
    return "\n".join([*lines, *(note for note, marked in notes if marked.any()), *agreed])


def agreements(rows: pd.DataFrame) -> Iterator[str]:
    """Yield how well the reward of a task's table agrees with what it is held against, over the unsteered replies."""
    for row in rows[rows["method"].map(_is_unsteered)].head(1).to_dict("records"):
        for name, other in AGREEMENTS.items():
            if not pd.isna(row.get(name)):
                low, high = row[f"{name}_low"], row[f"{name}_high"]
                ends = "" if pd.isna(low) else f" ({low:.2f} to {high:.2f})"
                what = f"reward and {COLUMNS[other].title}"
                yield f"Rank correlation of {what} over the unsteered replies: {row[name]:.2f}{ends}."


def gain_text(row: Mapping[Any, Any], name: str) -> str:
    """Return a gain of a leaderboard's row with its interval, bold where it is sure; nothing of the unsteered model."""
    gain, low, high, p = (row[f"{name}{end}"] for end in ("", "_low", "_high", "_p_holm"))
    if pd.isna(gain) or _is_unsteered(row["method"]):
        return ""
    digits = COLUMNS[name].digits
    shown = f"{gain:+z.{digits}f}" if pd.isna(p) or p >= SIGNIFICANT else f"**{gain:+z.{digits}f}**"
    return shown if pd.isna(low) else f"{shown} ({low:z.{digits}f} to {high:z.{digits}f})"


def _mean(row: Mapping[Any, Any], name: str) -> str:
    if pd.isna(row[name]):
        return "–"
    far = " ‡" if name == "kl" and row[name] > FAR_KL else ""
    unmatched = " (not matched)" if name == "kl" and row["matched"] is False else ""
    return f"{row[name]:.{COLUMNS[name].digits}f}{far}{unmatched}"


def _is_unsteered(method: str) -> bool:
    return method.split(" #", maxsplit=1)[0] == UNSTEERED
