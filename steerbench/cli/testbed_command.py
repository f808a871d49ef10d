"""`steerbench testbed`: build, info, verify."""

from pathlib import Path
from typing import Annotated, Any

import typer

from steerbench.cli.console import err, out, say
from steerbench.cli.layout import Cell, Columns, between, print_table
from steerbench.cli.repetition import Commands
from steerbench.errors import SteerbenchError
from steerbench.testbed import NAME, Testbed, named

app = Commands(help="The embedded world: models and data made from scratch.", no_args_is_help=True)
_TRAINING = ("parameters", "steps", "batch", "rate", "loss", "seconds")
"""What is shown of the training of a part."""

Where = Annotated[str, typer.Argument(help="The folder of a testbed that was built; default: the one that ships.")]


@app.command()
def build(
    folder: Annotated[Path, typer.Option("--out", help="A new folder.")],
    seed: Annotated[int, typer.Option(help="Another seed gives another world.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Make a world, and train its models from scratch: about two hours on two cores."""
    from steerbench.cli import stages
    from steerbench.testbed_build.bounds import shortfalls
    from steerbench.testbed_build.build import build as make

    with stages.shown(err) as progress:
        made = make(folder, seed, device, progress)
    where = str(folder.expanduser().absolute())
    info(where)
    if problems := shortfalls(made["quality"]):
        raise SteerbenchError(f"{where} is not good enough: {'; '.join(problems)}. Try another seed.")
    say(f"Use it with: steerbench run --model {where}")


@app.command()
def info(where: Where = NAME) -> None:
    """Print what a testbed is made of and how good it is."""
    values = _find(where).manifest
    say(f"{NAME}, seed {values['seed']}, {values['bytes'] / 1e6:.1f} MB, built {values['built']}", "bold")
    say(f"on {values['machine']['device']}", "dim")
    _show_training(values["training"])
    _show_quality(values["quality"], None)


@app.command()
def verify(where: Where = NAME) -> None:
    """Check the files of a testbed, and measure again how good it is: about five minutes."""
    from steerbench.cli import stages
    from steerbench.testbed_build.bounds import drift, shortfalls
    from steerbench.testbed_build.manifest import damage
    from steerbench.testbed_build.quality import measure

    home = _find(where)
    if problems := damage(home):
        raise SteerbenchError(f"{home.folder} is damaged: {'; '.join(problems)}. Install or build it again.")
    told = home.manifest
    with stages.shown(err) as progress:
        figures = measure(home.folder, told["seed"], progress, told["quality"]["n"])
    _show_quality(told["quality"], figures)
    if problems := [*shortfalls(figures), *drift(told["quality"], figures)]:
        raise SteerbenchError(f"the figures of {home.folder} do not hold: {'; '.join(problems)}.")
    say("All files are intact, and all figures hold.", "green")


def _find(where: str) -> Testbed:
    home = named(where)
    if home is None or not home.folder.is_dir():
        raise SteerbenchError(f"there is no testbed at {where!r}; `steerbench testbed build --out DIR` makes one.")
    return home


def _show_training(log: dict[str, Any]) -> None:
    columns: Columns = {"part": list(log), **{name: [_cell(part[name]) for part in log.values()] for name in _TRAINING}}
    print_table(out, "", columns, yields=("rate", "batch", "steps"), names="part")
    out.print()


def _show_quality(told: dict[str, Any], now: dict[str, Any] | None) -> None:
    figures = [name for name in told if name != "samples"]
    columns: dict[str, list[Cell]] = {"figure": list(figures), "manifest": [_cell(told[name]) for name in figures]}
    if now:
        columns["now"] = [_cell(now[name]) for name in figures]
    print_table(out, "", {**columns, "required": [_bound(name) for name in figures]}, names="figure")


def _bound(name: str) -> str:
    from steerbench.testbed_build.bounds import AT_LEAST, AT_MOST

    return f">= {AT_LEAST[name]}" if name in AT_LEAST else f"<= {AT_MOST[name]}" if name in AT_MOST else ""


def _cell(value: Any) -> Cell:
    if isinstance(value, dict):
        return f"{value['mean']:.2f} ({between(value['low'], value['high'], 2)})"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
