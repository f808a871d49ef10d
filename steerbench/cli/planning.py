"""`steerbench power`."""

from pathlib import Path
from typing import Annotated

import typer

from steerbench.cli.console import out, say


def power(
    folders: Annotated[list[Path], typer.Argument(help="Folders with records, the unsteered model's among them.")],
    difference: Annotated[float, typer.Option(help="True difference to the unsteered model, in units of the metric.")],
    metric: Annotated[str, typer.Option(help="Column of the records: reward, held_out_reward, gold, win_rate, ...")] = (
        "reward"
    ),
    chance: Annotated[float, typer.Option("--power", help="Share of studies that are to see it.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="Level of the two-sided test.")] = 0.05,
) -> None:
    """Say how many prompts it takes to see a difference, from how much measured differences vary."""
    from steerbench import tables
    from steerbench.power import power_table
    from steerbench.records import records_in

    records = records_in(folders)
    table = power_table(records, metric, difference, power=chance, alpha=alpha)
    tables.show_power(out, table)
    say(
        f"prompts needed: to see a true difference of {difference:g} in {metric} in {chance:.0%} of studies at the "
        f"{alpha:g} level; smallest: the difference that as many prompts as measured would find with the same chance."
    )
