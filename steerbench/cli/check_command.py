"""`steerbench check`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from steerbench.cli.console import err, note, out
from steerbench.cli.imports import import_swiftly
from steerbench.cli.options import Plugins, add_plugins, check_names
from steerbench.errors import SteerbenchError

if TYPE_CHECKING:
    from steerbench.contract.check import Result


def check(
    file: Annotated[str, typer.Argument(help="A Python file with a method, or a method as in --methods.")],
    family: Annotated[str | None, typer.Option(help="One model family; default: all.")] = None,
    plugin: Plugins = None,
) -> None:
    """Run the contract suite on a method and say which invariant it breaks."""
    add_plugins(plugin)
    if not file.endswith(".py"):
        check_names(methods=file)
    import_swiftly("steerbench.contract.check")
    from steerbench.cli import stages
    from steerbench.contract.check import check_method, families
    from steerbench.plugins.registry import add_plugin

    name = file
    if file.endswith(".py"):
        kind, name = add_plugin(file)
        if kind != "methods":
            raise SteerbenchError(f"{file} is a task; the contract suite checks methods.")
    with stages.shown(err) as progress:
        results = check_method(name, families(family), progress)
    if show_checks(out, name, results):
        raise typer.Exit(2)


def show_checks(console: Console, method: str, results: "Sequence[Result]") -> bool:
    """Print the contract suite's results and return whether an invariant is broken."""
    from steerbench.contract.check import FIT
    from steerbench.contract.invariants import INVARIANTS

    invariants = dict.fromkeys(r.invariant for r in results)
    for invariant in invariants:
        cases = [r for r in results if r.invariant == invariant]
        broken = [r for r in cases if r.problem]
        sign = "[red]broken[/red]" if broken else "[green]holds [/green]"
        console.print(f"{sign}  {invariant}", highlight=False, soft_wrap=True)
        for problem in dict.fromkeys(r.problem for r in broken):
            names = ", ".join(r.family for r in broken if r.problem == problem)
            note(console, f"        {names}: {problem}", "red")
    fits = [r for r in results if r.invariant != FIT]
    unfit, n = len(results) - len(fits), len(INVARIANTS)
    n_broken = sum(r.problem is not None for r in fits)
    if fits:
        note(
            console,
            f"{method}: {len(fits) - n_broken} of {len(fits)} checks hold, {n} invariants on {len(fits) // n} model "
            f"families.",
        )
    if unfit:
        note(
            console,
            f"{method}: fit fails on {unfit} of {unfit + len(fits) // n} model families, so {unfit * n} of "
            f"{unfit * n + len(fits)} checks could not be made.",
        )
    return n_broken + unfit > 0
