"""`steerbench report`."""

from pathlib import Path
from typing import Annotated

import typer

from steerbench.cli.console import Complaints, say


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders with records.")],
    page: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Also write a plot to this SVG file: reward gain against gold gain, or without rewards given answers "
            "over strength."
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            help="Prompts of each task and protocol whose generations the page holds, with all seeds and samples; if "
            "not given, as many of each task's first protocol as a light page has room for.",
            min=0,
        ),
    ] = None,
    claims: Annotated[
        Path | None, typer.Option(help="TOML file with claims, as `steerbench verdicts` takes it: show their verdicts.")
    ] = None,
) -> None:
    """Make one HTML file from records: what works and what it costs, plots, verdicts, generations, protocol."""
    from steerbench.report import write_report

    left_out = Complaints()
    write_report(folders, page, examples, plot, left_out, claims)
    for file in (page, plot):
        if file:
            say(f"written: {file}")
    left_out.close()
