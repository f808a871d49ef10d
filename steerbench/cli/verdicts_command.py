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
    from steerbench.records import verdicts as on_claims
    from steerbench.records.markdown import write_between

    left_out = Complaints()
    found = on_claims.decided(claims, left_out)
    tables.show_verdicts(out, found)
    if markdown:
        write_between(markdown, on_claims.START, on_claims.END, on_claims.markdown(found))
        say(f"written: {markdown}")
    left_out.close()
