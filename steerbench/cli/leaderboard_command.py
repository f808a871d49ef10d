"""`steerbench leaderboard`."""

from pathlib import Path
from typing import Annotated

import typer

from steerbench.cli.console import Complaints, out, say
from steerbench.errors import SteerbenchError


def leaderboard(
    folders: Annotated[list[Path], typer.Argument(help="Folders with records.")],
    csv: Annotated[Path | None, typer.Option(help="Write the table, with all columns, to this file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write Markdown to this file; between marks, if it has them.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of the Markdown: the first ones of the first task, with unsteered.")
    ] = None,
) -> None:
    """Rank the records in folders. Refuses to rank what was not measured alike."""
    from steerbench.cli import tables
    from steerbench.records.leaderboard import leaderboard as rank
    from steerbench.records.leaderboard import write_csv
    from steerbench.records.markdown import write_markdown
    from steerbench.records.store import records_in

    if rows and not markdown:
        raise SteerbenchError("--rows is for a table in Markdown; say which file it goes to: --markdown FILE.")
    left_out = Complaints()
    records = records_in(folders, left_out)
    table = rank(records)
    tables.show(out, table, records, f"All columns are in {csv}." if csv else "--csv FILE writes all columns.")
    if csv:
        write_csv(table, csv)
        say(f"written: {csv}")
    if markdown:
        write_markdown(table, markdown, rows)
        say(f"written: {markdown}")
    left_out.close()
