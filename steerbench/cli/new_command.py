"""`steerbench new`."""

import keyword
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steerbench.cli.console import say
from steerbench.cli.repetition import Commands
from steerbench.errors import SteerbenchError
from steerbench.files import write_whole

if TYPE_CHECKING:
    from steerbench.plugins.plugin import Kind

new = Commands(help="Begin a method or a task.", no_args_is_help=True)


@new.command("method")
def new_method(name: Annotated[str, typer.Argument(help="Name of the method and of its file.")]) -> None:
    """Write a method file to start from."""
    from steerbench.plugins.template import METHOD

    _write("methods", name, {f"{name}.py": METHOD})
    say(f"written: {name}.py. Next: steerbench check {name}.py")


@new.command("task")
def new_task(name: Annotated[str, typer.Argument(help="Name of the task and of its files.")]) -> None:
    """Write a task file to start from, with a CSV that it reads and a test."""
    from steerbench.plugins.template import TASK, TASK_ROWS, TASK_TEST

    _write("tasks", name, {f"{name}.py": TASK, f"{name}.csv": TASK_ROWS, f"test_{name}.py": TASK_TEST})
    say(f"written: {name}.py, {name}.csv and test_{name}.py. Next: pytest test_{name}.py")
    say(f"Then:    steerbench run --plugin {name}.py --tasks {name} --data {name}.csv --methods caa,static_prompt")


def _write(kind: "Kind", name: str, files: dict[str, str]) -> None:
    """Write templates under a name of the user's, all or none. Raises SteerbenchError where it is no free name."""
    from steerbench.plugins.registry import names

    singular = kind.removesuffix("s")
    class_name = "".join(word.capitalize() for word in name.split("_"))
    if not (name.isascii() and class_name.isidentifier()) or keyword.iskeyword(name):
        raise SteerbenchError(
            f"{name!r} cannot name a {singular}; use letters, digits and underscores, a letter first, and no "
            "word of Python's own, such as class."
        )
    taken = [file for file in files if Path(file).exists()]
    if name in names(kind) or taken:
        raise SteerbenchError(f"{(taken or [name])[0]} exists; choose another name.")
    if find_spec(name):
        raise SteerbenchError(
            f"{name}.py would hide the Python module {name!r} from all that runs here; choose another name."
        )
    for file, text in files.items():
        own = text.replace(f"My{singular.capitalize()}", class_name).replace(f"my_{singular}", name)
        try:
            write_whole(Path(file), own)
        except OSError as error:
            raise SteerbenchError(f"cannot write {file}: {error.strerror}; go to another folder.") from error
