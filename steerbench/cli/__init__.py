"""The command line: reads options, calls the library, prints. Nothing heavy is imported before it is needed."""

import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING

from steerbench.cli.interruption import handled
from steerbench.lazy_names import lazily

if TYPE_CHECKING:
    from steerbench.cli.application import app as app

__getattr__, __dir__ = lazily(__name__, __file__)


def main() -> None:
    """Run the command line. What a terminal cannot encode is shown as `?`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    with handled():
        from steerbench.cli.application import app  # Ctrl-C while this is imported ends in a sentence, too

        app()
