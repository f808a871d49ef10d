"""Public names that are loaded when first used, so that `import steerbench` imports no torch."""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

Lookup = tuple[Callable[[str], Any], Callable[[], list[str]]]


def lazily(module: str, file: str) -> Lookup:
    """Return `__getattr__` and `__dir__` of a module for the names that it imports under `if TYPE_CHECKING:`.

    So each public name stands in one line, which type checkers read as any other import.
    """
    known = _homes(ast.parse(Path(file).read_bytes()))

    def look_up(name: str) -> Any:
        if name not in known:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(importlib.import_module(known[name]), name)

    return look_up, lambda: sorted(known)


def homes(module: str) -> dict[str, str]:
    """Return the public names of such a module, each with the module that it comes from."""
    return _homes(ast.parse(Path(str(importlib.import_module(module).__file__)).read_bytes()))


def _homes(tree: ast.Module) -> dict[str, str]:
    guarded = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [line for node in guarded for line in node.body if isinstance(line, ast.ImportFrom) and line.module]
    return {alias.name: str(line.module) for line in imports for alias in line.names}
