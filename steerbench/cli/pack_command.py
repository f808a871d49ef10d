"""`steerbench pack`."""

from pathlib import Path
from typing import Annotated

import typer

from steerbench.cli.console import say


def pack(
    folder: Annotated[Path, typer.Argument(help="Folder with records.")],
    packed: Annotated[Path, typer.Argument(help="New folder for the packed study, such as results/NAME.")],
) -> None:
    """Pack the records of a folder into three files, which every command reads as it reads the records."""
    from steerbench.records import packing
    from steerbench.records.store import records_in

    records = records_in([folder])
    packing.pack(records, packed)
    say(f"packed {len(records)} records into {packed}")
