"""Cards of methods and tasks: the docstrings of their files, read without importing anything."""

import ast
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from steerbench.errors import SteerbenchError
from steerbench.plugins.registry import BUILT_IN, PLUGINS, Source


def card(source: Source) -> str:
    """Return the docstring of a source's file. Raises SteerbenchError that says why there is none."""
    file = _file(source)
    try:
        text = _docstring(file)
    except OSError as error:
        raise SteerbenchError(f"cannot read {file}: {error.strerror}; reinstall it.") from error
    except (SyntaxError, ValueError) as error:  # ValueError: bytes that are no text
        raise SteerbenchError(f"{file} is no Python source: {error}.") from error
    if not text:
        raise SteerbenchError(f"{file} has no docstring; write what it does at its top.")
    return text


def _docstring(file: Path) -> str:
    with warnings.catch_warnings(action="ignore"):  # a formula may well hold `\s`
        return ast.get_docstring(ast.parse(file.read_bytes(), file)) or ""


def _file(source: Source) -> Path:
    if source.module.startswith(f"{PLUGINS}."):
        return Path(source.origin)
    spec = find_spec(source.module) if source.origin == BUILT_IN else _spec(source.module)
    if spec is None:
        raise SteerbenchError(f"no file of module {source.module!r} was found; reinstall or upgrade its distribution.")
    if not (spec.origin or "").endswith(".py"):
        raise SteerbenchError(f"module {source.module!r} has no Python source.")
    return Path(str(spec.origin))


def _spec(module: str) -> ModuleSpec | None:
    """Find a module without importing the packages that it lies in, as `find_spec` would: they are somebody else's."""
    top, *inner = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:  # no name, or one that was made at run time, such as `__main__`
        return None
    for name in inner:
        folders = spec.submodule_search_locations if spec else None
        spec = PathFinder.find_spec(name, folders) if folders else None
    return spec
