"""Cards of methods and tasks: the docstrings of their files, read without importing anything."""

import ast
import re
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from steerbench.errors import SteerbenchError
from steerbench.plugins.registry import BUILT_IN, PLUGINS, Source


def card(source: Source) -> str:
    """Return the docstring of a source's file. Raises SteerbenchError that says why there is none."""
    text = ast.get_docstring(syntax_tree(source))
    if not text:
        raise SteerbenchError(f"{file_of(source)} has no docstring; write what it does at its top.")
    return text


class Head(NamedTuple):
    """What a list shows of a card. The last two are in the words of the card, and empty where it does not say."""

    summary: str
    """Its first line."""
    learns_from: str
    """`nothing`, `prompts`, `pairs`, `rollouts with rewards` or `reward at test time`."""
    touches: str
    """`prompt`, `activations`, `logits`, `choice of responses` or `nothing`."""


def head(source: Source) -> Head:
    """Return what a list shows of a card, which may say `Learns from: pairs. Touches: activations.`"""
    text = card(source)
    said = (re.search(rf"\b{what}: ([\w ]+)", text) for what in ("Learns from", "Touches"))
    return Head(text.partition("\n")[0], *(found[1].strip() if found else "" for found in said))


def syntax_tree(source: Source) -> ast.Module:
    """Return the syntax tree of a source's file. Raises SteerbenchError that says why there is none."""
    file = file_of(source)
    try:
        with warnings.catch_warnings(action="ignore"):  # a formula may well hold `\s`
            return ast.parse(file.read_bytes(), file)
    except OSError as error:
        raise SteerbenchError(f"cannot read {file}: {error.strerror}; reinstall it.") from error
    except (SyntaxError, ValueError) as error:  # ValueError: bytes that are no text
        raise SteerbenchError(f"{file} is no Python source: {error}.") from error


def file_of(source: Source) -> Path:
    """Return the file of a source. Raises SteerbenchError that says why there is none."""
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
