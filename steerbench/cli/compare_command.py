"""`steerbench compare`."""

from pathlib import Path
from typing import Annotated

import typer

from steerbench.cli.console import Complaints, out, say
from steerbench.cli.layout import remark


def compare(
    first: Annotated[str, typer.Argument(help="A method, as the leaderboard names it.")],
    second: Annotated[str, typer.Argument(help="Another one; `unsteered` is one, too.")],
    folders: Annotated[list[Path], typer.Argument(help="Folders with records.")],
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
) -> None:
    """Hold two methods against each other, on the same prompts and seeds: every metric, with its interval."""
    from steerbench.cli import tables
    from steerbench.records.leaderboard import write_csv
    from steerbench.records.paired import paired_comparison
    from steerbench.records.store import records_in

    left_out = Complaints()
    table = paired_comparison(records_in(folders, left_out), first, second)
    tables.show_paired(out, table, first, second)
    remark(
        out,
        f"difference: {first} minus {second} on the same prompts, with a 95 % interval; higher: share of responses in "
        "which the first has the higher value, ties one half; p: of each metric alone.",
    )
    if table["p"].isna().all():
        remark(out, "No p: one seed, and another may steer otherwise; the intervals are over prompts alone.")
    if csv:
        write_csv(table, csv)
        say(f"written: {csv}")
    left_out.close()
