"""What an option means that is given again, or given nothing: a list goes on, anything else is a mistake."""

from functools import partial
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from steerbench.errors import SteerbenchError

if TYPE_CHECKING:
    from collections.abc import Callable

LISTS = frozenset({"methods", "tasks", "batch_sizes", "prompt_tokens", "strength"})
"""Parameters whose text is a list, separated by commas: given again, it goes on."""


class OnceEach(TyperCommand):
    """A command that forgets nothing of what it is given. Its parser would keep an option's last text alone."""

    def make_parser(self, ctx: Any) -> Any:
        """Return a parser whose options look at what was given before."""
        parser = super().make_parser(ctx)
        for option in {*parser._long_opt.values(), *parser._short_opt.values()}:
            option.process = partial(_process, option, option.process)  # type: ignore[method-assign]
        for argument in parser._args:
            argument.process = partial(_process_argument, argument, argument.process)  # type: ignore[method-assign]
        return parser


class Commands(typer.Typer):
    """A `Typer` whose commands are all `OnceEach`."""

    def command(self, name: str | None = None, **settings: Any) -> "Callable[[Any], Any]":
        """Return the decorator of `Typer`."""
        return super().command(name, **{"cls": OnceEach, **settings})


def _process(option: Any, take: "Callable[[Any, Any], None]", value: Any, state: Any) -> None:
    """Take a value beside those before it. Raises SteerbenchError where there can be only one."""
    if option.obj in state.order and not option.obj.multiple:
        if option.dest not in LISTS:
            raise SteerbenchError(f"{option.obj.opts[0]} is given twice; give it once.")
        value = f"{state.opts[option.dest]},{value}"
    if value == "" and option.dest not in LISTS:  # which say what is in them
        raise SteerbenchError(f"{option.obj.opts[0]} is empty; give it a value, or leave it out.")
    take(value, state)


def _process_argument(argument: Any, take: "Callable[[Any, Any], None]", value: Any, state: Any) -> None:
    """Take the texts of an argument. Raises SteerbenchError for an empty one: as a path it is this folder."""
    if "" in (value if isinstance(value, tuple) else (value,)):
        raise SteerbenchError(f"{argument.obj.name} has an empty text; put something between the quotes.")
    take(value, state)
