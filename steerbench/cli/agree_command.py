"""`steerbench agree`."""

from pathlib import Path
from typing import Annotated

import typer

from steerbench.cli.console import Complaints, out, say
from steerbench.cli.layout import remark


def agree(
    folders: Annotated[list[Path], typer.Argument(help="Folders with records, each a study of its own.")],
    metric: Annotated[str, typer.Option(help="Whose gains are ranked: reward, held_out_reward or gold.")] = (
        "held_out_reward"
    ),
    markdown: Annotated[
        Path | None, typer.Option(help="Write Markdown to this file; between marks, if it has them.")
    ] = None,
) -> None:
    """Say whether methods come in the same order on two tasks, models or strengths: rank correlations."""
    from steerbench.cli import tables
    from steerbench.records import order_agreement as orders
    from steerbench.records.markdown import write_between

    left_out = Complaints()
    found = orders.order_agreements(folders, metric, left_out)
    tables.show_agreements(out, found)
    remark(
        out,
        "rank correlation: Spearman, of the gains of the methods that both tables have, with a 95 % interval over "
        "methods; noise in the gains pulls it toward 0.",
    )
    if markdown:
        write_between(markdown, orders.START, orders.END, orders.markdown(found, metric))
        say(f"written: {markdown}")
    left_out.close()
