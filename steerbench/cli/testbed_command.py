"""`steerbench testbed`: build, info, verify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from steerbench.cli.repetition import Commands
from steerbench.errors import SteerbenchError
from steerbench.testbed import NAME, Testbed, named

if TYPE_CHECKING:
    from rich.table import Table

app = Commands(help="The embedded world: models and data made from scratch.", no_args_is_help=True)
out = Console(emoji=False)
err = Console(emoji=False, stderr=True)

Where = Annotated[str, typer.Argument(help="The folder of a testbed that was built; default: the one that ships.")]


@app.command()
def build(
    folder: Annotated[Path, typer.Option("--out", help="A new folder.")],
    seed: Annotated[int, typer.Option(help="Another seed gives another world.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Make a world, and train its models from scratch: about 45 minutes on two cores."""
    from steerbench.cli import tables
    from steerbench.testbed_build.bounds import shortfalls
    from steerbench.testbed_build.build import build as make

    with tables.bars(err) as progress:
        made = make(folder, seed, device, progress)
    where = str(folder.expanduser().absolute())
    info(where)
    if problems := shortfalls(made["quality"]):
        raise SteerbenchError(f"{where} is not good enough: {'; '.join(problems)}. Try another seed.")
    out.print(f"Use it with: steerbench run --model {where}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def info(where: Where = NAME) -> None:
    """Print what a testbed is made of and how good it is."""
    values = _find(where).manifest
    out.print(f"{NAME}, seed {values['seed']}, {values['bytes'] / 1e6:.1f} MB, built {values['built']}", style="bold")
    out.print(f"on {values['machine']['device']}", style="dim", markup=False)
    out.print(_training(values["training"]))
    out.print(_quality(values["quality"], None))


@app.command()
def verify(where: Where = NAME) -> None:
    """Check the files of a testbed, and measure again how good it is: about two minutes."""
    from steerbench.cli import tables
    from steerbench.testbed_build.bounds import drift, shortfalls
    from steerbench.testbed_build.manifest import damage
    from steerbench.testbed_build.quality import measure

    home = _find(where)
    if problems := damage(home):
        raise SteerbenchError(f"{home.folder} is damaged: {'; '.join(problems)}. Install or build it again.")
    told = home.manifest
    with tables.bars(err) as progress:
        figures = measure(home.folder, told["seed"], progress, told["quality"]["n"])
    out.print(_quality(told["quality"], figures))
    if problems := [*shortfalls(figures), *drift(told["quality"], figures)]:
        raise SteerbenchError(f"the figures of {home.folder} do not hold: {'; '.join(problems)}.")
    out.print("All files are intact, and all figures hold.", style="green")


def _find(where: str) -> Testbed:
    home = named(where)
    if home is None or not home.folder.is_dir():
        raise SteerbenchError(f"there is no testbed at {where!r}; `steerbench testbed build --out DIR` makes one.")
    return home


def _training(log: dict[str, Any]) -> "Table":
    columns = ("parameters", "steps", "batch", "rate", "loss", "seconds")
    table = _table("part", *columns)
    for part, values in log.items():
        table.add_row(part, *(_cell(values[name]) for name in columns))
    return table


def _quality(told: dict[str, Any], now: dict[str, Any] | None) -> "Table":
    from steerbench.testbed_build.bounds import AT_LEAST, AT_MOST

    table = _table("figure", "manifest", *(["now"] if now else []), "required")
    for name, value in told.items():
        if name == "samples":
            continue
        bound = f">= {AT_LEAST[name]}" if name in AT_LEAST else f"<= {AT_MOST[name]}" if name in AT_MOST else ""
        table.add_row(name, _cell(value), *([_cell(now[name])] if now else []), bound)
    return table


def _table(first: str, *others: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['mean']:.2f} ({value['low']:.2f} to {value['high']:.2f})"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
