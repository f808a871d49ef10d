"""`steerbench check`."""

from typing import Annotated

import typer

from steerbench.cli.console import err, out
from steerbench.cli.options import Plugins, add_plugins
from steerbench.errors import SteerbenchError


def check(
    file: Annotated[str, typer.Argument(help="A Python file with a method, or a method as in --methods.")],
    family: Annotated[str | None, typer.Option(help="One model family; default: all.")] = None,
    plugin: Plugins = None,
) -> None:
    """Run the contract suite on a method and say which invariant it breaks."""
    add_plugins(plugin)
    from steerbench.cli import tables
    from steerbench.contract.check import check_method, families
    from steerbench.plugins.registry import add_plugin

    name = file
    if file.endswith(".py"):
        kind, name = add_plugin(file)
        if kind != "methods":
            raise SteerbenchError(f"{file} is a task; the contract suite checks methods.")
    with tables.bars(err) as progress:
        results = check_method(name, families(family), progress)
    if tables.show_checks(out, name, results):
        raise typer.Exit(2)
