"""An option that is given again: a list goes on, anything else is refused, in every command."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import Result

from steerbench.cli import app
from steerbench.cli.repetition import LISTS, OnceEach

Cli = Callable[..., Result]


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = dict(commands(get_command(app)))
OPTIONS = [
    pytest.param(words, option, id=" ".join([*words, option.opts[0]]))
    for words, command in COMMANDS.items()
    for option in command.params
    if option.param_type_name == "option"
]


def given(option: Any, n: int) -> list[str]:
    """Return an option n times, under each of its names in turn."""
    names = [option.opts[i % len(option.opts)] for i in range(n)]
    return [text for i, name in enumerate(names) for text in ([name] if option.is_flag else [name, str(i)])]


def parsed(command: Any, option: Any, args: list[str]) -> Any:
    """Return what a parser reads for an option."""
    return command.make_parser(command.context_class(command)).parse_args(args)[0][option.name]


def test_every_command_is_of_the_one_kind() -> None:
    assert {("run",), ("latency",), ("new", "method"), ("testbed", "build")} <= COMMANDS.keys()
    assert {type(command) for command in COMMANDS.values()} == {OnceEach}


@pytest.mark.parametrize(("words", "option"), OPTIONS)
@pytest.mark.parametrize("n", [2, 3])
def test_every_option_adds_up_or_is_refused(cli: Cli, words: tuple[str, ...], option: Any, n: int) -> None:
    if option.name in LISTS:
        assert parsed(COMMANDS[words], option, given(option, n)) == ",".join(map(str, range(n)))
    elif option.multiple:
        assert parsed(COMMANDS[words], option, given(option, n)) == [*map(str, range(n))]
    else:
        done = cli(*words, *given(option, n))
        assert done.exit_code == 2
        assert done.stderr == f"error: {option.opts[0]} is given twice; give it once.\n"
        assert done.stdout == ""


@pytest.mark.parametrize(("words", "option"), OPTIONS)
def test_an_option_given_nothing_is_refused(cli: Cli, words: tuple[str, ...], option: Any) -> None:
    """As a path, it would be this folder."""
    if option.name in LISTS or option.is_flag:
        return
    done = cli(*words, option.opts[0], "")
    assert done.exit_code == 2
    assert done.stderr == f"error: {option.opts[0]} is empty; give it a value, or leave it out.\n"


@pytest.mark.parametrize(
    "words", [["leaderboard"], ["report"], ["power"], ["generate"], ["pack", "runs"], ["new", "method"]]
)
def test_an_argument_given_nothing_is_refused(cli: Cli, words: list[str]) -> None:
    done = cli(*words, "")
    assert done.exit_code == 2
    assert done.stderr.endswith(" has an empty text; put something between the quotes.\n")


def test_every_list_is_an_option_of_a_command() -> None:
    assert {option.name for command in COMMANDS.values() for option in command.params} >= LISTS
