"""The table of `docs/columns.md`, made from the columns themselves: `python -m steerbench.records.column_page FILE`."""

import argparse
from pathlib import Path

from steerbench.records.columns import COLUMNS, Column
from steerbench.records.markdown import table_line, write_between

START, END = "<!-- columns: written by make columns -->", "<!-- end of columns -->"
_BETTER = {1: "higher", 0: "", -1: "lower"}
_EXAMPLES = ("reward_gain", "win_rate")
"""Columns whose intervals and tests stand for those of all that have some."""


def column_table() -> str:
    """Return the table in Markdown: every column, then what there is about a gain and about a share."""
    heads = ["column", "heading", "meaning", "unit", "better"]
    shown = [column for column in COLUMNS.values() if not column.of]
    shown += [column for column in COLUMNS.values() if column.of in _EXAMPLES]
    return "\n".join(map(table_line, [heads, ["---"] * len(heads), *map(_cells, shown)]))


def _cells(column: Column) -> list[str]:
    short = f" ({column.heading})" if column.long else ""
    return [f"`{column.name}`", column.title + short, column.meaning, column.unit, _BETTER[column.better]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the table of all columns.")
    parser.add_argument("file", type=Path, help="page with the table, such as docs/columns.md")
    write_between(parser.parse_args().file, START, END, column_table())
