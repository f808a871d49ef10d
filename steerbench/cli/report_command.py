"""`steerbench report`."""

from pathlib import Path
from typing import Annotated

import typer

from steerbench.cli.console import Complaints, say


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders with records.")],
    page: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    plot: Annotated[
        Path | None, typer.Option(help="Also write a plot of reward gain against gold gain to this SVG file.")
    ] = None,
    examples: Annotated[int, typer.Option(help="Prompts per task whose generations the page holds.", min=0)] = 64,
) -> None:
    """Make one HTML file from records: ranking, plots, generations, protocol. It needs no network to be read."""
    from steerbench.report import write_report

    left_out = Complaints()
    write_report(folders, page, examples, plot, left_out)
    for file in (page, plot):
        if file:
            say(f"written: {file}")
    left_out.close()
