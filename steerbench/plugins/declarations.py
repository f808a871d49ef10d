"""What the class of a method or a task declares, its hyperparameters above all, read without importing anything."""

import ast
import re
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from steerbench.errors import SteerbenchError
from steerbench.plugins import ranges
from steerbench.plugins.docstrings import file_of, syntax_tree
from steerbench.plugins.plugin import BASES
from steerbench.plugins.ranges import Range
from steerbench.plugins.registry import Source
from steerbench.plugins.settings import option_text


class Setting(NamedTuple):
    """A hyperparameter of a method, or a setting of a task, as a user writes it."""

    name: str
    takes: str
    """Its type, or the options it has, such as `float | none` or `last | first`."""
    default: str
    """Empty where a value must be given."""
    meaning: str
    """Its line in the docstring of the class; empty where there is none."""
    off: str | None
    """The value at which the method does nothing; None where that hangs on another one."""
    searched: list[str]
    """The values that tuning draws from."""


def declared(source: Source) -> list[Setting]:
    """Return the settings of a source in the order of its class. Raises SteerbenchError where there is no class."""
    tree = syntax_tree(source)
    cls = _class_of(tree, source)
    known = _assigned(tree.body)
    inside = {**known, **_assigned(cls.body)}
    off, search = (_entries(inside.get(name), known) for name in ("off", "search"))
    meanings = dict(_meanings(ast.get_docstring(cls) or ""))
    return [
        Setting(
            name=name,
            takes=_type(field.annotation),
            default=_text(field.value, known) if field.value else "",
            meaning=meanings.get(name, ""),
            off=_text(off[name], known) if name in off else None,
            searched=[_text(value, known) for value in getattr(search.get(name), "elts", [])],
        )
        for name, field in _fields(cls)
    ]


def _class_of(tree: ast.Module, source: Source) -> ast.ClassDef:
    """Return the class that an entry point names, or the last one that derives from the base of its kind."""
    kin = {BASES[source.kind]}
    found = None
    for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        if node.name == source.attribute or kin & {ast.unparse(base).rpartition(".")[2] for base in node.bases}:
            kin.add(node.name)
            found = node if source.attribute in ("", node.name) else found
    if found is None:
        wanted = f"class {source.attribute}" if source.attribute else f"class that subclasses {BASES[source.kind]}"
        raise SteerbenchError(f"{file_of(source)} defines no {wanted}; define it there.")
    return found


def _fields(cls: ast.ClassDef) -> Iterator[tuple[str, ast.AnnAssign]]:
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            hint = ast.unparse(node.annotation).removeprefix("typing.")
            if not hint.startswith("ClassVar"):
                yield node.target.id, node


def _assigned(body: list[ast.stmt]) -> dict[str, ast.expr]:
    """Return the values that names are given, the last one of each."""
    found: dict[str, ast.expr] = {}
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.expr):
            found |= {target.id: value for target in targets if isinstance(target, ast.Name)}
    return found


def _entries(node: ast.expr | None, known: dict[str, ast.expr]) -> dict[str, ast.expr]:
    node = known.get(node.id) if isinstance(node, ast.Name) else node
    if not isinstance(node, ast.Dict):
        return {}
    pairs = zip(node.keys, node.values, strict=True)
    return {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}


def _type(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
        options = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return " | ".join(_text(option, {}) for option in options)
    if isinstance(node, ast.BinOp):
        return f"{_type(node.left)} | {_type(node.right)}"
    if isinstance(node, ast.Name) and node.id in _NAMED:
        return _NAMED[node.id]
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Annotated"):
        kind, *notes = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return " ".join([_type(kind), *filter(None, map(_range, notes))])
    return ast.unparse(node).replace("None", "none")


def _range(node: ast.expr) -> str:
    """Return a range in words; what is no range says nothing, and one that is not plain numbers stands as written."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func).rpartition(".")[2] != Range.__name__:
        return ""
    try:
        ends = [ast.literal_eval(end) for end in node.args]
        return Range(*ends, **{str(key.arg): ast.literal_eval(key.value) for key in node.keywords}).text()
    except ValueError:
        return ast.unparse(node)


def _written(hint: Any) -> str:
    """Return a hint of `ranges` as a type is written, with its range in words."""
    if get_origin(hint) is Annotated:
        kind, note = get_args(hint)
        return f"{kind.__name__} {note.text()}"
    return " | ".join(map(_written, get_args(hint)))


_NAMED = {name: _written(hint) for name, hint in vars(ranges).items() if get_origin(hint) in (Annotated, Union)}
"""What a hint that has a name in `ranges` stands for."""


def _text(node: ast.expr, known: dict[str, ast.expr]) -> str:
    """Return a value as it is written in a specification; what is no plain value, as it is written in the file."""
    node = known.get(node.id, node) if isinstance(node, ast.Name) else node
    try:
        return option_text(ast.literal_eval(node))
    except ValueError:
        return ast.unparse(node)


def _meanings(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield name and meaning of lines such as "- `good`, `bad`: words of the two sides"; a line may go on indented."""
    for item in re.finditer(r"^- (`\w+`(?:, `\w+`)*): (.+(?:\n  .+)*)", docstring, re.MULTILINE):
        for name in re.findall(r"\w+", item[1]):
            yield name, " ".join(item[2].split())
