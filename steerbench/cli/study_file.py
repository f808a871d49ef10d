"""A run described by a file: every option of `steerbench run` under its own name, in TOML.

What stands on the command line goes before what stands in the file.
"""

import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from steerbench.errors import SteerbenchError, suggest
from steerbench.files import write_asked

NAME = "study.toml"
"""What a run calls the file that describes it, beside its records."""


def read_study(ctx: Any, path: Path | None) -> Path | None:
    """Take the options of a file as the defaults of a command: the callback of its argument.

    Raises SteerbenchError for an option that the command does not have.
    """
    if path is None or ctx.resilient_parsing:
        return path
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fault = error.strerror if isinstance(error, OSError) else error
        raise SteerbenchError(
            f"{path} is no study file: {fault}. A run writes one into --out; names of methods go behind --methods."
        ) from error
    options = _options(ctx)
    ctx.default_map = {}
    for name, value in values.items():
        if name not in options:
            raise SteerbenchError(f"{path}: {suggest('option', name, list(options))}")
        given = _given(value, options[name], f"{path}: {name}")
        try:
            options[name].process_value(ctx, given)
        except typer.BadParameter as error:
            raise SteerbenchError(f"{path}: {name} = {_toml(value)}: {error.message}.") from error
        ctx.default_map[options[name].name] = given
    return path


@contextmanager
def blaming(ctx: Any, path: Path | None) -> Iterator[None]:
    """Have a mistake that is found in the options name the file and the key where it stands, if it is in the file."""
    try:
        yield
    except SteerbenchError as error:
        asked = {key: ctx.params.get(option.name) for key, option in _options(ctx).items()}
        given = {key: (ctx.default_map or {}).get(option.name) for key, option in _options(ctx).items()}
        for key, value in given.items() if path else ():
            if value is not None and str(value) == str(asked[key]) and _speaks_of(str(error), key, value):
                fault = str(error).removeprefix(f"--{key} ")
                raise SteerbenchError(f"{path}: {key} = {_toml(value)}: {fault}") from error
        raise


def _speaks_of(message: str, key: str, value: Any) -> bool:
    """Tell whether a message names an option, or begins with or quotes a word of a list of methods or tasks."""
    if key not in ("methods", "tasks"):
        return bool(re.search(rf"\b{key}\b", message.replace("_", "-")))
    words = re.findall(r"\w+", str(value))
    return any(message.startswith(f"{word}:") or f"'{word}'" in message for word in words)


def write_study(ctx: Any, folder: Path) -> None:
    """Write the options of a command that is running into a folder, so that it can be run again."""
    lines = [
        f"{name} = {_toml(value)}"
        for name, option in _options(ctx).items()
        if (value := ctx.params.get(option.name)) not in (None, [], ()) and name != "out"
    ]
    write_asked(folder / NAME, "\n".join(lines) + "\n")


def _options(ctx: Any) -> dict[str, Any]:
    """Return the options of a command by name, without dashes in front."""
    found = {p.opts[0].removeprefix("--"): p for p in ctx.command.params if p.param_type_name == "option"}
    return {name: option for name, option in found.items() if name not in {"help", "dry-run"}}


def _given(value: Any, option: Any, where: str) -> Any:
    """Return a value as the command line would give it: a list of words is one text, unless the option is repeated."""
    if isinstance(value, dict):
        raise SteerbenchError(f"{where} is a table; give a text, a number, true or false, or a list.")
    if isinstance(value, list):
        return [str(one) for one in value] if option.multiple else ",".join(map(str, value))
    if isinstance(value, bool) != bool(getattr(option, "is_flag", False)):
        raise SteerbenchError(f"{where} = {_toml(value)}: {'true or false' if option.is_flag else 'no switch'}.")
    return [value] if option.multiple else value


def _toml(value: Any) -> str:
    """Write a value; texts, numbers, switches and lists look alike in JSON and in TOML."""
    if isinstance(value, list | tuple):
        return json.dumps([str(one) for one in value], ensure_ascii=False)
    return json.dumps(value if isinstance(value, bool | int | float) else str(value), ensure_ascii=False)
