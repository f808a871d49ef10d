"""`steerbench list`."""

from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from steerbench.cli.console import out, say
from steerbench.errors import SteerbenchError

if TYPE_CHECKING:
    from steerbench.plugins.registry import Source


def list_(
    kind: Annotated[Literal["methods", "tasks", "all"], typer.Argument(help="What to list.")] = "all",
    long: Annotated[bool, typer.Option("--long", help="Show the card of each: what it does, at what cost.")] = False,
) -> None:
    """List methods and tasks, and where each comes from."""
    from steerbench.plugins.plugin import KINDS
    from steerbench.plugins.registry import sources

    for name in KINDS:
        if kind in (name, "all"):
            out.print(name, style="bold", end="\n\n" if long else "\n")
            for source in sources(name):
                if long:
                    _show_card(source)
                else:
                    _show_source(source, "  ")


def _show_source(source: "Source", margin: str = "") -> None:
    origin = Text(source.origin, style="dim")
    out.print(f"{margin}{source.name} ", origin, markup=False, highlight=False, soft_wrap=True)


def _show_card(source: "Source") -> None:
    from steerbench.plugins.cards import card

    _show_source(source)
    try:
        say(indent(card(source), "  "))
    except SteerbenchError as error:  # a broken one hides no other
        out.print(f"  no card: {error}", style="dim", markup=False, highlight=False, soft_wrap=True)
    out.print()
