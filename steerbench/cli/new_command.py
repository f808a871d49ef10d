"""`steerbench new`."""

import keyword
from pathlib import Path
from typing import Annotated

import typer

from steerbench.cli.console import say
from steerbench.cli.repetition import Commands
from steerbench.errors import SteerbenchError
from steerbench.files import write_whole

new = Commands(help="Begin a plugin.", no_args_is_help=True)


@new.command("method")
def new_method(name: Annotated[str, typer.Argument(help="Name of the method and of its file.")]) -> None:
    """Write a method file to start from."""
    from steerbench.plugins.registry import names
    from steerbench.plugins.template import METHOD

    path = Path(f"{name}.py")
    class_name = "".join(word.capitalize() for word in name.split("_"))
    if not (name.isascii() and class_name.isidentifier()) or keyword.iskeyword(name):
        raise SteerbenchError(f"{name!r} cannot name a method; use letters, digits and underscores, a letter first.")
    if name in names("methods") or path.exists():
        raise SteerbenchError(f"{path if path.exists() else name} exists; choose another name.")
    try:
        write_whole(path, METHOD.replace("MyMethod", class_name))
    except OSError as error:
        raise SteerbenchError(f"cannot write {path}: {error.strerror}; go to another folder.") from error
    say(f"written: {path}. Next: steerbench check {path}")
