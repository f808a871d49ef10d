"""`steerbench new` and `check`."""

import keyword
from pathlib import Path
from typing import Annotated

import typer

from steerbench.cli.console import err, out, say
from steerbench.cli.options import Plugins, add_plugins
from steerbench.errors import SteerbenchError

new = typer.Typer(help="Begin a plugin.", no_args_is_help=True)


@new.command("method")
def new_method(name: Annotated[str, typer.Argument(help="Name of the method and of its file.")]) -> None:
    """Write a method file to start from."""
    from steerbench.registry import names
    from steerbench.template import METHOD

    path = Path(f"{name}.py")
    class_name = "".join(word.capitalize() for word in name.split("_"))
    if not (name.isascii() and class_name.isidentifier()) or keyword.iskeyword(name):
        raise SteerbenchError(f"{name!r} cannot name a method; use letters, digits and underscores, a letter first.")
    if name in names("methods") or path.exists():
        raise SteerbenchError(f"{path if path.exists() else name} exists; choose another name.")
    try:
        path.write_text(METHOD.replace("MyMethod", class_name), encoding="utf-8")
    except OSError as error:
        raise SteerbenchError(f"cannot write {path}: {error.strerror}; go to another folder.") from error
    say(f"written: {path}. Next: steerbench check {path}")


def check(
    file: Annotated[str, typer.Argument(help="A Python file with a method, or a method as in --methods.")],
    family: Annotated[str | None, typer.Option(help="One model family; default: all.")] = None,
    plugin: Plugins = None,
) -> None:
    """Run the contract suite on a method and say which invariant it breaks."""
    add_plugins(plugin)
    from steerbench import tables
    from steerbench.contract import check_method, families
    from steerbench.registry import add_plugin

    name = file
    if file.endswith(".py"):
        kind, name = add_plugin(file)
        if kind != "methods":
            raise SteerbenchError(f"{file} is a task; the contract suite checks methods.")
    with tables.bars(err) as progress:
        results = check_method(name, families(family), progress)
    if tables.show_checks(out, name, results):
        raise typer.Exit(2)
