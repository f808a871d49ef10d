"""Finds methods and tasks by name: files in `methods/` and `tasks/`, entry points of other distributions, plugin files.

Listing reads names only and imports nothing; a plugin is imported when it is loaded, so a broken one harms no other.
"""

import importlib
import inspect
import pkgutil
import re
import sys
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from steerbench.errors import SteerbenchError, suggest
from steerbench.plugins.cells import hash_cells
from steerbench.plugins.importing import import_module, run_file
from steerbench.plugins.plugin import BASES, KINDS, Kind, Plugin
from steerbench.plugins.source import hash_source

BUILT_IN = "built in"
PLUGINS = "steerbench_plugins"
"""The package as whose modules plugin files are imported."""


class Source(NamedTuple):
    """Where a method or a task comes from."""

    kind: Kind
    name: str
    origin: str
    """`built in`, the name and version of a distribution, or the path of a plugin file."""
    module: str
    """Name under which the module is imported."""
    attribute: str = ""
    """The class that the entry point names; empty: the only one in the module."""

    def __str__(self) -> str:
        return f"{_singular(self.kind)} {self.name!r} ({self.origin})"


_files: dict[str, Source] = {}  # module name -> plugin file or class registered in this process
_hashes: dict[type[Any], str] = {}


def names(kind: Kind) -> list[str]:
    """Return all known names, sorted."""
    return sorted({source.name for source in sources(kind)})


def sources(kind: Kind) -> list[Source]:
    """Return all sources, sorted by name. A name claimed by two is there twice, and `load` refuses it."""
    files = [source for source in _files.values() if source.kind == kind]
    return sorted([*_built_in(kind), *_entry_points(kind), *files], key=lambda source: source.name)


def load(kind: Kind, name: str) -> type[Any]:
    """Import a method or a task and return its class. Raises SteerbenchError that says what to mend."""
    return _load(find(kind, name))


def add_plugin(plugin: str | Path | type[Any]) -> tuple[Kind, str]:
    """Register a plugin in this process, and return its kind and name.

    `plugin` is a Python file, whose name becomes that of the plugin, or a class: `MyMethod` becomes `my_method`. Adding
    a file again does nothing, or loads it afresh if it was edited.
    """
    if isinstance(plugin, type):
        return _add_class(plugin)
    path = _checked(Path(plugin).resolve())
    for kind in KINDS:
        for source in _built_in(kind):
            if source.name == path.stem and (spec := find_spec(source.module)) and spec.origin == str(path):
                return kind, source.name
    module_name = f"{PLUGINS}.{path.stem}"
    known = _files.get(module_name)
    if known and known.origin != str(path):
        raise SteerbenchError(f"{path} has the name of another plugin, {known.origin}; rename one of the files.")
    if known and source_hash(_load(known)) == hash_source(_import(known), path):
        return known.kind, known.name
    _files.pop(module_name, None)
    module = run_file(path, module_name, f"plugin {path}")
    source = Source(_kind_of(module), path.stem, str(path), module_name)
    _check_free(source)
    _load(source)
    _files[module_name] = source
    return source.kind, source.name


def plugin_files() -> list[Path]:
    """Return the files that were added in this process, so that another one can add them too."""
    return [Path(source.origin) for name, source in _files.items() if name.startswith(f"{PLUGINS}.")]


def _add_class(cls: type[Any]) -> tuple[Kind, str]:
    """Register a class of a module that is there, or of a notebook. One that has a source already keeps it."""
    if not issubclass(cls, Plugin) or inspect.isabstract(cls):
        raise SteerbenchError(f"{cls.__name__} is no finished {' and no '.join(BASES.values())}; subclass one of them.")
    if getattr(sys.modules.get(cls.__module__), cls.__name__, None) is not cls:
        raise SteerbenchError(f"{cls.__name__} would not be found again; define it at the top of its module.")
    for known in sources(cls.kind):
        if known.module == cls.__module__ and known.attribute in ("", cls.__name__):
            _load(known)
            return known.kind, known.name
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
    origin = getattr(sys.modules[cls.__module__], "__file__", None) or "this session"
    source = Source(cls.kind, name, origin, cls.__module__, cls.__name__)
    _check_free(source)
    _load(source)
    _files[f"{source.module}:{source.attribute}"] = source
    return source.kind, source.name


def source_hash(cls: type[Any]) -> str:
    """Return a hash of the code of a method or a task, as it was when the class was loaded: see `hash_source`."""
    if cls not in _hashes:
        module = sys.modules.get(cls.__module__)
        file = getattr(module, "__file__", None)
        in_file = module is not None and file is not None and Path(file).is_file()
        _hashes[cls] = hash_source(module, Path(file)) if in_file else hash_cells(cls)  # type: ignore[arg-type]
    return _hashes[cls]


def qualified(cls: type[Any]) -> str:
    """Return the reference that `resolve` understands: `methods/my_method:MyEdit`."""
    reference = f"{cls.__module__}:{cls.__name__}"
    if getattr(sys.modules.get(cls.__module__), cls.__name__, None) is not cls:
        raise SteerbenchError(f"{reference} cannot be saved; define the class at the top of its file.")
    for source in (source for kind in KINDS for source in sources(kind)):
        if source.module == cls.__module__:
            return f"{source.kind}/{source.name}:{cls.__name__}"
    raise SteerbenchError(f"{reference} cannot be saved; define the class in the file of the method that uses it.")


_WORD = r"_?[A-Za-z]\w*"
_REFERENCE = re.compile(rf"({'|'.join(KINDS)})/({_WORD}):({_WORD})", re.ASCII)


def resolve(reference: str) -> type[Any]:
    """Return the class of a reference. Imports nothing but registered plugins."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise SteerbenchError(f"{reference!r} is no class of steerbench or of a plugin; was the file edited?")
    kind = next(kind for kind in KINDS if kind == match[1])
    module, name = _import(find(kind, match[2])), match[3]
    cls = vars(module).get(name)
    if not isinstance(cls, type) or cls.__module__ != module.__name__:
        raise SteerbenchError(f"{reference!r}: {module.__name__} defines no class {name!r}; was it renamed?")
    return cls


def _built_in(kind: Kind) -> list[Source]:
    package = f"steerbench.{kind}"
    try:
        modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    except ModuleNotFoundError as error:  # a bare checkout: `methods` is mapped to its place by the installation
        raise SteerbenchError("steerbench is not installed; run `pip install -e .` first.") from error
    return [Source(kind, m.name, BUILT_IN, f"{package}.{m.name}") for m in modules if not m.name.startswith("_")]


def entry_points(group: str) -> tuple[metadata.EntryPoint, ...]:
    """Return the entry points of a group, of all that is installed by now."""
    folders = [Path(folder) for folder in sys.path]
    return _entry_points_of(group, tuple((str(f), f.stat().st_mtime_ns) for f in folders if f.exists()))


@cache  # it opens a file of every distribution
def _entry_points_of(group: str, installed: tuple[tuple[str, int], ...]) -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=group))


def _entry_points(kind: Kind) -> list[Source]:
    found = []
    for point in entry_points(f"steerbench.{kind}"):
        origin = f"{point.dist.name} {point.dist.version}" if point.dist else "an entry point"
        module, _, attribute = point.value.partition(":")
        found.append(Source(kind, point.name, origin, module.strip(), attribute.strip()))
    return found


def find(kind: Kind, name: str, option: str = "") -> Source:
    """Return the only source of a name. Raises SteerbenchError if there is none, or more than one.

    `option` is that of a command where the other kind is given; empty: the command has none.
    """
    found = [source for source in sources(kind) if source.name == name]
    for other in KINDS:
        if not found and name in names(other):
            advice = f"{other} are given with {option}" if option else f"give the name of a {_singular(kind)}"
            raise SteerbenchError(f"{name!r} is a {_singular(other)} and no {_singular(kind)}; {advice}.")
    if not found:
        raise SteerbenchError(suggest(_singular(kind), name, names(kind)) + " A file of yours: --plugin FILE.")
    if len(found) > 1:
        origins = " and ".join(source.origin for source in found)
        raise SteerbenchError(f"{_singular(kind)} {name!r} comes from two places, {origins}; remove one.")
    if not name.isidentifier():
        raise SteerbenchError(f"{found[0]}: rename the entry point to a Python identifier.")
    return found[0]


def _import(source: Source) -> ModuleType:
    return import_module(source.module, str(source))


def _load(source: Source) -> type[Any]:
    """Return the one concrete class of a source, defined in its very module, so that one file is its whole identity."""
    classes = [c for c in _subclasses(_import(source), source.kind) if source.attribute in ("", c.__name__)]
    concrete = [c for c in classes if not inspect.isabstract(c)]
    if len(concrete) != 1:
        raise SteerbenchError(f"{source}: {_complaint(source, concrete, classes)}")
    if source.kind == "methods" and "__dataclass_fields__" not in vars(concrete[0]):  # its fields would not count
        raise SteerbenchError(f"{source}: {concrete[0].__name__} needs @dataclass(frozen=True, kw_only=True) above it.")
    if source.kind == "tasks" and not hasattr(concrete[0], "version"):
        raise SteerbenchError(f"{source}: class {concrete[0].__name__} must define version, a whole number such as 1.")
    source_hash(concrete[0])  # kept from now on: the file may be edited during a long run
    return concrete[0]


def _complaint(source: Source, concrete: list[type[Any]], classes: list[type[Any]]) -> str:
    if concrete:
        return f"{source.module} defines {' and '.join(c.__name__ for c in concrete)}; put each into its own file."
    if classes:
        return f"class {classes[0].__name__} must define {', '.join(sorted(classes[0].__abstractmethods__))}."
    wanted = f"class {source.attribute}" if source.attribute else "class"
    return f"{source.module} defines no {wanted} that subclasses {BASES[source.kind]}; define it there."


def _subclasses(module: ModuleType, kind: Kind) -> list[type[Any]]:
    """Return the methods or tasks that a module defines itself, abstract ones too."""
    classes = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Plugin)]
    return [c for c in dict.fromkeys(classes) if c.__module__ == module.__name__ and c.kind == kind]


def _checked(path: Path) -> Path:
    if not path.exists():
        raise SteerbenchError(f"plugin {path} does not exist; check the path.")
    if path.suffix != ".py" or not path.is_file():
        raise SteerbenchError(f"plugin {path} is not a Python file; give the path of a .py file.")
    if not path.stem.isidentifier():
        raise SteerbenchError(f"plugin {path}: its file name becomes its name, so rename it to a Python identifier.")
    return path


def _kind_of(module: ModuleType) -> Kind:
    kinds = [kind for kind in KINDS if _subclasses(module, kind)]
    if len(kinds) != 1:
        what = "both a Steerer and a Task; put each into its own file" if kinds else "no Steerer and no Task; add one"
        raise SteerbenchError(f"plugin {module.__file__} defines {what}.")
    return kinds[0]


def _check_free(source: Source) -> None:
    for other in sources(source.kind):
        if other.name == source.name:
            raise SteerbenchError(f"plugin {source.origin} has the name of {other}; rename the file.")


def _singular(kind: Kind) -> str:
    return kind.removesuffix("s")
