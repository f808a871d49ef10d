"""The source of a class that was written in a notebook: the cells that it and what it uses were defined in."""

import hashlib
import json
import linecache
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from steerbench.errors import SteerbenchError


def hash_cells(cls: type[Any]) -> str:
    """Return a hash of the cells of a class and of the functions, classes and plain values that it names.

    Raises SteerbenchError if a source is not to be had, or if it uses a value whose content cannot be told.
    """
    texts: set[str] = set()
    open_: list[Any] = [cls]
    seen: set[int] = set()
    while open_:
        thing = open_.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        functions = list(_functions(thing))
        found = {"".join(linecache.getlines(function.__code__.co_filename)) for function in functions}
        if not found or "" in found:
            raise SteerbenchError(f"{cls.__name__} is not defined in a file; move it into one to give it an identity.")
        texts |= found
        for name, value in (pair for function in functions for pair in _named(function, thing.__module__)):
            if isinstance(value, type | FunctionType):
                open_.append(value)
            else:
                texts.add(f"{name} = {_plain(cls, name, value)}")
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()


def _functions(thing: Any) -> Iterator[FunctionType]:
    """Yield the functions that were written in a class, or a function itself."""
    for value in vars(thing).values() if isinstance(thing, type) else [thing]:
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if isinstance(function, FunctionType) and not function.__code__.co_filename.startswith("<string>"):
            yield function


def _named(function: FunctionType, module: str) -> Iterator[tuple[str, Any]]:
    """Yield what a function names of its own module; what is imported counts by its version."""
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        imported = isinstance(value, type | FunctionType) and value.__module__ != module
        if name in function.__globals__ and not imported and not isinstance(value, ModuleType):
            yield name, value


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _plain(cls: type[Any], name: str, value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        if getattr(value, "__module__", "__main__") != "__main__" and callable(value):  # imported, such as a wrapper
            return repr(type(value))
    raise SteerbenchError(
        f"{cls.__name__} uses {name!r}, whose content cannot be told; make it a hyperparameter, or move both to a file."
    )
