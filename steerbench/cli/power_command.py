"""`steerbench power`."""

from pathlib import Path
from typing import Annotated

import typer

from steerbench.cli.console import Complaints, out
from steerbench.cli.layout import remark
from steerbench.errors import SteerbenchError, suggest


def power(
    folders: Annotated[list[Path], typer.Argument(help="Folders with records, the unsteered model's among them.")],
    difference: Annotated[
        float | None,
        typer.Option(help="Say how many prompts this true difference to the unsteered model takes."),
    ] = None,
    metric: Annotated[str, typer.Option(help="Column of the records: reward, held_out_reward, gold, win_rate, ...")] = (
        "reward"
    ),
    chance: Annotated[float, typer.Option("--power", help="Share of studies that are to see it.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="Level of the two-sided test.")] = 0.05,
) -> None:
    """Say which differences can be seen with how many prompts, from how much measured differences vary."""
    from steerbench.cli import tables
    from steerbench.records.columns import METRIC_COLUMNS
    from steerbench.records.power import power_table
    from steerbench.records.store import records_in

    metrics = [column.name for column in METRIC_COLUMNS]
    if metric not in metrics:
        raise SteerbenchError(suggest("metric", metric, metrics))
    left_out = Complaints()
    records = records_in(folders, left_out)
    table = power_table(records, metric, difference, power=chance, alpha=alpha)
    tables.show_power(out, table)
    studies = f"in {chance:.0%} of studies at the {alpha:g} level"
    if difference is None:
        remark(
            out,
            f"smallest: the true difference in {metric} that as many prompts as measured find {studies}; 2 ×, 4 ×: "
            f"that many times the prompts. How many a difference takes: --difference.",
        )
    else:
        remark(
            out,
            f"prompts needed: to see a true difference of {difference:g} in {metric} {studies}; smallest: the "
            f"difference that as many prompts as measured would find with the same chance.",
        )
    left_out.close()
