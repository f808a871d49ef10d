"""What the command line shows: progress bars, the leaderboard, the results of the contract suite."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from steerbench.plugins.spec import UNSTEERED
from steerbench.progress import Advance, Progress
from steerbench.records.columns import COLUMNS, GAINS
from steerbench.records.record import Record

if TYPE_CHECKING:
    from steerbench.contract.check import Result

_SHOWN = (
    "rank",
    "method",
    "reward",
    "held_out_reward",
    "gold",
    "win_rate",
    "kl",
    "diversity",
    "coherence",
    "length",
    "decode_ratio",
    "matched",
)
"""What the terminal shows; the CSV has all columns."""
_NARROW = 8
"""Characters of a line that names of methods get at least: with them, the table fits into 80."""
_DIGITS = (3, 2, 1, 0)
"""Decimals of gains: as many as fit."""


@contextmanager
def bars(console: Console) -> Iterator[Progress]:
    """Show a bar for each piece of work while it lasts, on a terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:

        @contextmanager
        def progress(label: str, total: int) -> Iterator[Advance]:
            task = shown.add_task(label, total=total)
            try:
                yield lambda n: shown.advance(task, n)
            finally:
                shown.remove_task(task)

        yield progress


def show(console: Console, table: pd.DataFrame, records: Sequence[Record]) -> None:
    """Print one table per task, what was measured, and what was left out."""
    for task, rows in table.groupby("task", sort=True):
        first = next(r for r in records if r.labels["task"] == task)
        console.print(fitted(_table(str(task), rows), console), crop=False)
        gains = _gains(rows)
        if not gains.empty:
            console.print()
            console.print(fitted(_gain_table(gains, console), console), crop=False)
        for line in _notes(first, rows, has_gains=not gains.empty):
            console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
        console.print()


def show_power(console: Console, table: pd.DataFrame) -> None:
    """Print one table per task: how many prompts a difference takes, or what more prompts would show."""
    heads = {"sd": "SD", "n_examples": COLUMNS["n_examples"].heading}
    if "n_needed" in table:
        heads |= {"n_needed": "prompts needed", "smallest": "smallest"}
    else:
        heads |= {"smallest": "smallest", "smallest_2x": "2 ×", "smallest_4x": "4 ×"}
    for task, rows in table.groupby("task", sort=True):
        shown = empty_table(str(task), ["method", *heads.values()])
        for _, row in rows.iterrows():
            shown.add_row(Text(row["method"]), *(_cell(row[name]) for name in heads))
        console.print(fitted(shown, console), crop=False)
        console.print()


def show_checks(console: Console, method: str, results: "Sequence[Result]") -> bool:
    """Print the contract suite's results and return whether an invariant is broken."""
    from steerbench.contract.check import FIT
    from steerbench.contract.invariants import INVARIANTS

    invariants = dict.fromkeys(r.invariant for r in results)
    for invariant in invariants:
        cases = [r for r in results if r.invariant == invariant]
        broken = [r for r in cases if r.problem]
        sign = "[red]broken[/red]" if broken else "[green]holds [/green]"
        console.print(f"{sign}  {invariant}", highlight=False)
        for problem in dict.fromkeys(r.problem for r in broken):
            names = ", ".join(r.family for r in broken if r.problem == problem)
            console.print(f"        {names}: {problem}", style="red", markup=False, highlight=False)
    fits = [r for r in results if r.invariant != FIT]
    unfit, n = len(results) - len(fits), len(INVARIANTS)
    n_broken = sum(r.problem is not None for r in fits)
    if fits:
        console.print(
            f"{method}: {len(fits) - n_broken} of {len(fits)} checks hold, {n} invariants on {len(fits) // n} model "
            f"families.",
            highlight=False,
        )
    if unfit:
        console.print(
            f"{method}: fit fails on {unfit} of {unfit + len(fits) // n} model families, so {unfit * n} of "
            f"{unfit * n + len(fits)} checks could not be made.",
            highlight=False,
            soft_wrap=True,
        )
    return n_broken + unfit > 0


def _table(task: str, rows: pd.DataFrame) -> Table:
    present = [name for name in _SHOWN if rows[name].notna().any()]
    table = empty_table(task, [COLUMNS[name].heading for name in present])
    for _, row in rows.iterrows():
        table.add_row(*(Text(_cell(row[name])) for name in present))  # Text: a method may hold [mark-up]
    return table


def _gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows and columns of the table of gains: methods beside which the unsteered model was measured."""
    steered = rows[[method.split(" #")[0] != UNSTEERED for method in rows["method"]]]  # `#` and a hash tell two apart
    present = [name for name in (f"{name}_gain" for name in GAINS) if steered[name].notna().any()]
    columns = [name + end for name in present for end in ("", "_low", "_high")]
    return steered[["method", *columns]] if columns else pd.DataFrame()


def _gain_table(gains: pd.DataFrame, console: Console) -> Table:
    """Return gains with their intervals, with as many decimals as fit into the terminal, or into 80."""
    present = [name for name in GAINS if f"{name}_gain" in gains]
    for digits in _DIGITS:
        table = empty_table("over unsteered, 95 % interval", ["method", *(COLUMNS[name].heading for name in present)])
        for _, row in gains.iterrows():
            table.add_row(*map(Text, [row["method"], *(_gain(row, name, digits) for name in present)]))
        if _narrowest(table, console) <= max(80, console.width):
            break
    return table


def _gain(row: pd.Series, name: str, digits: int) -> str:
    mean, low, high = (row[f"{name}_gain{end}"] for end in ("", "_low", "_high"))
    if pd.isna(mean):
        return "–"
    ends = "no interval" if pd.isna(low) else f"{low:z.{digits}f} to {high:z.{digits}f}"  # z: never -0.000
    return f"{mean:+z.{digits}f} ({ends})"


def empty_table(title: str, heads: Sequence[str]) -> Table:
    """Return a table without rows, whose column `method` may fold."""
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for head in heads:
        text = head == "method"
        table.add_column(head, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    return table


def fitted(table: Table, console: Console) -> Table:
    """Fold names of methods to the width of the terminal, but never cut a number, however narrow it is."""
    if _natural(table, console) > console.width:
        table.width = max(console.width, _narrowest(table, console))
    return table


def _natural(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _narrowest(table: Table, console: Console) -> int:
    """Return the width of a table whose names of methods are folded as far as they may be."""
    methods = next(column for column in table.columns if column.header == "method")
    longest = max(cell.cell_len for cell in methods.cells if isinstance(cell, Text))
    return _natural(table, console) - max(0, longest - _NARROW)


def _cell(value: object) -> str:
    if pd.isna(value):
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _notes(record: Record, rows: pd.DataFrame, has_gains: bool) -> Iterator[str]:
    labels = record.labels
    held_out = f", held-out {labels['held_out_reward']}" if labels["held_out_reward"] else ""
    yield (
        f"{labels['model']} on {record.protocol['n_examples']} test prompts, seeds {record.protocol['seeds']}; "
        f"reward {labels['reward_model']}{held_out}; encoder {labels['encoder']}."
    )
    yield f"time ×: decoding beside the unsteered model, batch 1, on {rows['device'].iloc[0]}."
    if has_gains:
        yield (
            "Intervals: paired bootstrap over the prompts, in clusters (posts or openings), seeds averaged; what other "
            "seeds or training data would change is not in them."
        )
    elif set(rows["method"]) != {UNSTEERED}:
        yield "No gains: the unsteered model was not measured beside these."
    if unranked := list(rows["method"][rows["rank"].isna()]):
        yield f"No rank, for want of seeds: {', '.join(unranked)}."
    if record.counts:
        yield "Left out: " + ", ".join(f"{n} {reason}" for reason, n in record.counts.items()) + "."
    if record.truncated:
        yield f"{record.truncated} texts were too long for the reward model, which read their end."


def show_pairs(console: Console, report: Mapping[str, Any]) -> None:
    """Print the first pairs that the parts of a method wrote, and how many could not be used."""
    for label, written in ((label, part.get("self_generated")) for label, part in report.items()):
        if not written:
            continue
        dropped = "".join(f", {reason}: {n}" for reason, n in written["dropped"].items() if n)
        shown = min(len(written["first"]), written["kept"])
        _line(console, f"  pairs that {label} wrote: {written['kept']} kept{dropped}; the first {shown}:", style="bold")
        for pair in written["first"]:
            _line(console, f"  ? {pair['query']}")
            for side, sign in (("good", "+"), ("bad", "-")):
                _line(console, f"    {sign} {pair[side + '_description']}", style="dim")
                _line(console, f"    {sign} {pair[side]}")


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
