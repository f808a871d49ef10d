"""`steerbench across`."""

from pathlib import Path
from typing import Annotated

import typer

from steerbench.cli.console import Complaints, out, say
from steerbench.cli.layout import remark


def across(
    folders: Annotated[list[Path], typer.Argument(help="Folders with records, each a study of its own.")],
    metric: Annotated[str, typer.Option(help="Whose gains are shown: reward, held_out_reward or gold.")] = (
        "held_out_reward"
    ),
    markdown: Annotated[
        Path | None, typer.Option(help="Write Markdown to this file; between marks, if it has them.")
    ] = None,
) -> None:
    """Show what methods gain in several studies, side by side: at several strengths, on several models."""
    from steerbench.cli import tables
    from steerbench.records import across as studies
    from steerbench.records.markdown import write_between

    left_out = Complaints()
    found = studies.across(folders, metric, left_out)
    tables.show_across(out, found)
    remark(
        out,
        f"gains of {metric} over the unsteered model of each study, with 95 % intervals; gains of two studies differ "
        "in more than the method: `steerbench compare` holds two methods of one study against each other.",
    )
    if markdown:
        write_between(markdown, studies.START, studies.END, studies.markdown(found))
        say(f"written: {markdown}")
    left_out.close()
