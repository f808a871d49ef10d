"""The source of a plugin: its own file, and what it imports from beside it."""

import ast
import hashlib
from collections.abc import Iterator
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import ModuleType

_SHARED = ("site-packages", "dist-packages")
"""Folders in which a module lies beside libraries, not beside its own parts."""


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a Python file without its docstrings: a better card is not another method."""
    return hashlib.sha256(_undocumented(path.read_bytes())).hexdigest()


def _undocumented(source: bytes) -> bytes:
    """Return source code without the strings that stand alone as statements; as it is, if it cannot be parsed."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # told when it is imported
        return source
    lines = source.splitlines(keepends=True)
    alone = [node for node in ast.walk(tree) if isinstance(node, ast.Expr) and _is_text(node.value)]
    for node in sorted(alone, key=lambda node: (-node.lineno, -node.col_offset)):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        lines[first : last + 1] = [lines[first][: node.col_offset] + lines[last][node.end_col_offset :]]
    return b"".join(lines)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def hash_source(module: ModuleType, file: Path) -> str:
    """Return a hash of a plugin's code: of its file alone, or with the files that it imports from its own folder.

    The folder is that of the file, or of the outermost package. What lies elsewhere, such as libraries, does not count.
    """
    files = _closure(module, file)
    if len(files) == 1:
        return hash_file(file)
    named = sorted(f"{path.name}\0{hash_file(path)}" for path in files)
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def _closure(module: ModuleType, file: Path) -> set[Path]:
    """Return the file and all that it imports, directly or not, from below its folder."""
    depth = module.__name__.count(".") if module.__package__ and not module.__name__.startswith("steerbench") else 0
    root = file.resolve().parents[max(depth - 1, 0)]
    if root.name in _SHARED:
        return {file.resolve()}
    found: set[Path] = set()
    open_: list[tuple[Path, str]] = [(file.resolve(), module.__package__ or "")]
    while open_:
        path, package = open_.pop()
        if path not in found:
            found.add(path)
            open_ += [(p, k) for p, k in _imports(path, package, root) if p.is_relative_to(root)]
    return found


def _imports(path: Path, package: str, root: Path) -> Iterator[tuple[Path, str]]:
    """Yield file and package of the modules below `root` that a file names in an import, wherever it stands."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # told when it is imported
        return
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            if _is_near(name.partition(".")[0], root):  # looking into libraries would import them
                yield from _located(name)


def _is_near(top: str, root: Path) -> bool:
    """Whether a top-level name is a module or a package in `root`, or holds it; the engine counts by its version."""
    if top == "steerbench":
        return False
    return (root / f"{top}.py").is_file() or (root / top).is_dir() or top in root.parts


def _located(name: str) -> Iterator[tuple[Path, str]]:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError, AttributeError):  # not a module: a class or a function of one
        return
    if spec and spec.origin and spec.origin.endswith(".py"):
        package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        yield Path(spec.origin).resolve(), package
