"""`steerbench verdicts`."""

from pathlib import Path
from typing import Annotated

import typer

from steerbench.cli.console import Complaints, out, say


def verdicts(
    claims: Annotated[Path, typer.Argument(help="TOML file with claims, each of which names a folder of records.")],
    markdown: Annotated[
        Path | None, typer.Option(help="Write Markdown to this file; between marks, if it has them.")
    ] = None,
) -> None:
    """Say which claims hold by the records: of papers, or your own, written down before you measure."""
    from steerbench.cli import tables
    from steerbench.records import verdicts as decided
    from steerbench.records.markdown import write_between
    from steerbench.records.store import records_in

    read, left_out = decided.read_claims(claims), Complaints()
    studies = {name: records_in([claims.parent / name], left_out) for name in sorted({claim.study for claim in read})}
    found = decided.verdicts(read, studies)
    tables.show_verdicts(out, found)
    if markdown:
        write_between(markdown, decided.START, decided.END, decided.markdown(found))
        say(f"written: {markdown}")
    left_out.close()
