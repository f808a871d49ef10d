"""Imports the modules of plugins, and turns what can go wrong in them into one sentence with the fix."""

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from steerbench.errors import SteerbenchError


def import_module(name: str, label: str) -> ModuleType:
    """Import a module by name. Raises SteerbenchError that begins with `label` and says what to do."""
    with _explained(label, name):
        return importlib.import_module(name)


def run_file(path: Path, name: str, label: str) -> ModuleType:
    """Import a file under a module name, afresh. Raises like `import_module`."""
    package, _, _ = name.rpartition(".")
    sys.modules.setdefault(package, ModuleType(package))
    spec = spec_from_file_location(name, path)
    assert spec, "a .py file always has a spec"
    module = sys.modules[name] = module_from_spec(spec)
    try:
        with _explained(label, name):
            # not spec.loader: its byte code cache would miss a second edit within a second
            exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _explained(label: str, module: str) -> Iterator[None]:
    try:
        yield
    except SteerbenchError:
        raise
    except Exception as error:
        raise SteerbenchError(f"{label} {_explain(error, module)}") from error


def _explain(error: Exception, module: str) -> str:
    if isinstance(error, SyntaxError):
        place = f" at {error.filename}:{error.lineno}" if error.lineno else ""  # a null byte has none
        return f"has a syntax error{place}: {error.msg}."
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        if f"{module}.".startswith(f"{error.name}."):
            return f"needs module {module!r}, which does not exist in the installed version; reinstall or upgrade it."
        if find_spec(top) is None:
            return f"needs the package {top!r}, which is not installed. Install it with: pip install {top}"
    return f"cannot be imported: {type(error).__name__}: {error} ({_place(error)})."


def _place(error: Exception) -> str:
    """Return file:line of the last frame that is not the import machinery."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    return f"{frames[-1].filename}:{frames[-1].lineno}"
