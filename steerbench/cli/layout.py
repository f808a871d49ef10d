"""How a table is laid out: as wide as it needs in a file, and never wider than the terminal.

Where a terminal is too narrow, decimals give way first, then columns, the least important ones before the others, then
the form: a block of lines for each row. A name is neither broken nor cut, and no number is.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import isnan

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from steerbench.cli.console import note, plain

Cell = str | Callable[[int], str]
"""The text of a cell, or what makes it with a number of decimals."""
Columns = Mapping[str, Sequence[Cell]]
"""The cells of each column by its head, from left to right. The first column has the names of the rows."""
DIGITS = (3, 2)
"""Decimals, from the most to the least."""


def print_table(
    console: Console,
    title: str,
    columns: Columns,
    *,
    yields: Sequence[str] = (),
    digits: Sequence[int] = DIGITS,
    elsewhere: str = "",
    names: str = "method",
) -> None:
    """Print a table. `yields` has the heads of the columns that may be left out, the first one first.

    `elsewhere` is a sentence that says where all columns are; `names` the column with the names of the rows.
    """
    if title:
        note(console, title, "italic")
    room = console.width if console.is_terminal else _UNBOUNDED  # rich takes a pipe for a terminal of 80
    for given, left_out in _fewer(columns, yields):
        for n in digits:
            table = _table(given, n, names)
            table.width = Measurement.get(console, console.options.update(max_width=_UNBOUNDED), table).maximum
            if table.width <= room:
                console.print(table, crop=False)
                if left_out:
                    missing = ", ".join(left_out).removesuffix(".")  # of an abbreviation
                    remark(console, f"Not shown, for want of width: {missing}. {elsewhere}".rstrip())
                return
    _print_blocks(console, columns, digits[0], names)


def print_rows(console: Console, table: Table) -> None:
    """Print a table of texts: on a terminal they are wrapped, elsewhere each row is one line, for `grep`."""
    if not console.is_terminal:
        table.width = Measurement.get(console, console.options.update(max_width=_UNBOUNDED), table).maximum
    console.print(table, crop=False)


def remark(console: Console, text: str) -> None:
    """Print a line about a table. A terminal's is broken between words; in a file it is one line."""
    console.print(plain(text, "dim"), highlight=False, soft_wrap=not console.is_terminal)


def number(value: float) -> Cell:
    """Return the cell of a number; of NaN, a dash."""
    return "–" if isnan(value) else lambda n: f"{value:.{n}f}"


def between(low: float, high: float, digits: int) -> str:
    """Return the ends of an interval; none is -0.000."""
    return f"{low:z.{digits}f} to {high:z.{digits}f}"


_UNBOUNDED = 10_000
"""A width that no table reaches."""


def _fewer(columns: Columns, yields: Sequence[str]) -> "list[tuple[Columns, list[str]]]":
    """Return all columns, then ever fewer of them, each time with the heads of what is left out, in their order."""
    there = [head for head in yields if head in columns]
    return [
        (
            {head: cells for head, cells in columns.items() if head not in there[:n]},
            [head for head in columns if head in there[:n]],
        )
        for n in range(len(there) + 1)
    ]


def _table(columns: Columns, digits: int, names: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head in columns:
        table.add_column(plain(head), justify="left" if head == names else "right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*(plain(_text(cell, digits)) for cell in row))
    return table


def _text(cell: Cell, digits: int) -> str:
    text = cell if isinstance(cell, str) else cell(digits)
    return text.replace("\n", r"\n").replace("\t", r"\t")  # a row is one line


def _print_blocks(console: Console, columns: Columns, digits: int, names: str) -> None:
    """Print each row as its name and, below it, a line for each of the other columns."""
    heads: Collection[str] = [head for head in columns if head != names]
    widest = max(map(len, heads))
    for i, name in enumerate(columns[names]):
        note(console, _text(name, digits), "bold")
        for head in heads:
            note(console, f"  {head:<{widest}}  {_text(columns[head][i], digits)}")
