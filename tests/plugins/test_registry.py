"""Finding methods and tasks: by name, from a file, from another distribution, and from a saved reference."""

import hashlib
import importlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from steerbench.data.task import Task
from steerbench.errors import SteerbenchError
from steerbench.learn.steerer import Steerer
from steerbench.plugins import registry
from steerbench.plugins.plugin import KINDS, Kind
from steerbench.plugins.registry import Source
from steerbench.plugins.source import _is_near, hash_file

METHOD = """
    from collections.abc import Mapping
    from dataclasses import dataclass
    from typing import Any, ClassVar
    from steerbench import FitContext, Steerer, Steering
    from steerbench.edits import Add

    class MyEdit(Add):
        pass

    @dataclass(frozen=True, kw_only=True)
    class Mine(Steerer):
        off: ClassVar[Mapping[str, Any]] = {}
        size: int = 1
        def fit(self, context: FitContext) -> Steering:
            return Steering()
"""
TASK = """
    from steerbench import Task

    class MyTask(Task):
        version = 1

        def parse(self, row):
            raise NotImplementedError
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the plugins of a test."""
    modules = set(sys.modules)
    monkeypatch.setattr(registry, "_files", {})
    yield
    for name in set(sys.modules) - modules:
        if name.startswith(("steerbench_plugins.", "steerbench.methods.my_", "outside")):
            del sys.modules[name]


def write(path: Path, source: str) -> Path:
    path.write_text(textwrap.dedent(source))
    return path


def message(kind: Kind, name: str) -> str:
    with pytest.raises(SteerbenchError) as error:
        registry.load(kind, name)
    return str(error.value)


def refusal(path: Path) -> str:
    with pytest.raises(SteerbenchError) as error:
        registry.add_plugin(path)
    return str(error.value)


@pytest.fixture
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the place of `methods/`."""
    monkeypatch.setattr(importlib.import_module("steerbench.methods"), "__path__", [str(tmp_path)])
    return tmp_path


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points of other distributions, with `tmp_path` to put their modules into."""
    points: list[EntryPoint] = []
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
    return points


# Built in


def test_every_file_is_listed_under_its_name() -> None:
    root = Path(__file__).parents[2]
    for kind in KINDS:
        files = sorted(p.stem for p in (root / kind).glob("*.py") if p.stem != "__init__")
        assert [s.name for s in registry.sources(kind) if s.origin == registry.BUILT_IN] == files


def test_every_built_in_loads() -> None:
    for source in registry.sources("methods"):
        assert issubclass(registry.load("methods", source.name), Steerer)
    for source in registry.sources("tasks"):
        assert issubclass(registry.load("tasks", source.name), Task)


def test_a_new_file_is_found_at_once(methods: Path) -> None:
    assert "my_method" not in registry.names("methods")
    write(methods / "my_method.py", METHOD)
    write(methods / "_private.py", METHOD)
    assert registry.names("methods") == ["my_method"]
    assert registry.load("methods", "my_method").__name__ == "Mine"


def test_unknown_name_gets_the_nearest_and_all_known() -> None:
    text = message("methods", "unsteerd")
    assert text.startswith("unknown method 'unsteerd'. Did you mean 'unsteered'? Known: ")
    assert "--plugin" in text


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "steerbench.methods", None)
    with pytest.raises(SteerbenchError, match=r"^steerbench is not installed; run `pip install -e \.` first\.$"):
        registry.names("methods")


def test_from_a_bare_checkout_the_message_says_install(tmp_path: Path) -> None:
    """The folder `steerbench` alone, as in the root of a clone without an installation."""
    (tmp_path / "steerbench").symlink_to(Path(__file__).parents[2] / "steerbench")
    code = "from steerbench.plugins import registry; registry.names('tasks')"
    command = [sys.executable, "-S", "-c", code]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "steerbench is not installed; run `pip install -e .` first." in run.stderr


# What can be wrong with a file


def test_a_task_without_a_version_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "unversioned.py", TASK.replace("version = 1", ""))
    with pytest.raises(SteerbenchError, match="class MyTask must define version, a whole number such as 1"):
        registry.add_plugin(file)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(:\n    pass", "has a syntax error at {file}:1: "),
        ("x = '\0'", "has a syntax error: source code string cannot contain null bytes."),
        ("import no_such_package.inner", "needs the package 'no_such_package', which is not installed. Install"),
        ("from json import nothing", "cannot be imported: ImportError: cannot import name 'nothing'"),
        ("import json.nothing", "cannot be imported: ModuleNotFoundError: No module named 'json.nothing'"),
        ("x = 1\nx.y", "cannot be imported: AttributeError: 'int' object has no attribute 'y' ({file}:2)."),
        ("", "defines no class that subclasses Steerer; define it there."),
        ("from steerbench import Steerer", "defines no class that subclasses Steerer; define it there."),
        ("from steerbench import Steerer\nclass A(Steerer): pass", "class A must define fit."),
        (METHOD + "\n    class Other(Mine):\n        pass", "defines Mine and Other; put each into its own file."),
        (METHOD.replace("@dataclass(frozen=True, kw_only=True)", ""), "Mine needs @dataclass(frozen=True, kw_only"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(methods: Path, source: str, expected: str) -> None:
    file = write(methods / "my_broken.py", source)
    text = message("methods", "my_broken")
    assert text.startswith("method 'my_broken' (built in)")
    assert expected.format(file=file) in text


def test_a_broken_file_harms_no_other(methods: Path) -> None:
    write(methods / "my_broken.py", "raise RuntimeError('no')")
    write(methods / "my_method.py", METHOD)
    assert registry.names("methods") == ["my_broken", "my_method"]
    assert registry.load("methods", "my_method").__name__ == "Mine"


def test_an_alias_is_not_a_second_class(methods: Path) -> None:
    write(methods / "my_method.py", METHOD + "\n    Alias = Mine\n")
    assert registry.load("methods", "my_method").__name__ == "Mine"


# Entry points


def test_entry_point_with_and_without_a_class(publish: list[EntryPoint], tmp_path: Path) -> None:
    write(tmp_path / "outside.py", METHOD + "\n    class Second(Mine):\n        pass\n")
    write(tmp_path / "outside_two.py", TASK)
    publish.append(EntryPoint("mine", "outside:Mine", "steerbench.methods"))
    publish.append(EntryPoint("toy", "outside_two", "steerbench.tasks"))
    assert registry.load("methods", "mine").__name__ == "Mine"
    assert registry.load("tasks", "toy").__name__ == "MyTask"
    assert Source("tasks", "toy", "an entry point", "outside_two") in registry.sources("tasks")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("outside_missing:Mine", "needs module 'outside_missing', which does not exist in the installed version"),
        ("outside:Nothing", "outside defines no class Nothing that subclasses Steerer"),
        ("outside:MyEdit", "outside defines no class MyEdit that subclasses Steerer"),
        ("outside_again:Mine", "outside_again defines no class Mine that subclasses Steerer; define it there."),
    ],
)
def test_a_broken_entry_point_is_explained_and_harms_no_other(
    publish: list[EntryPoint], tmp_path: Path, value: str, expected: str
) -> None:
    write(tmp_path / "outside.py", METHOD)
    write(tmp_path / "outside_again.py", "from outside import Mine")
    publish.append(EntryPoint("other", value, "steerbench.methods"))
    assert {"other", "unsteered"} <= set(registry.names("methods"))
    assert issubclass(registry.load("methods", "unsteered"), Steerer)
    text = message("methods", "other")
    assert text.startswith("method 'other' (an entry point)")
    assert expected in text


def test_an_entry_point_must_be_an_identifier(publish: list[EntryPoint]) -> None:
    publish.append(EntryPoint("my-method", "outside", "steerbench.methods"))
    assert "rename the entry point to a Python identifier" in message("methods", "my-method")


def test_a_name_from_two_places_is_refused(publish: list[EntryPoint], tmp_path: Path) -> None:
    write(tmp_path / "outside.py", METHOD)
    publish.append(EntryPoint("unsteered", "outside", "steerbench.methods"))
    expected = "method 'unsteered' comes from two places, built in and an entry point; remove one."
    assert message("methods", "unsteered") == expected
    assert registry.names("methods").count("unsteered") == 1


# Plugin files


def test_a_plugin_file_is_named_by_its_file_and_typed_by_its_class(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", METHOD)
    assert registry.add_plugin(path) == ("methods", "mine")
    assert registry.add_plugin(write(tmp_path / "other.py", TASK)) == ("tasks", "other")
    cls = registry.load("methods", "mine")
    assert (cls.__name__, cls.__module__) == ("Mine", "steerbench_plugins.mine")
    assert cls is registry.load("methods", "mine")
    assert Source("methods", "mine", str(path), cls.__module__) in registry.sources("methods")


def test_adding_again_does_nothing_unless_the_file_was_edited(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", METHOD)
    registry.add_plugin(path)
    first = registry.load("methods", "mine")
    registry.add_plugin(str(path))
    assert registry.load("methods", "mine") is first
    write(path, METHOD.replace("size: int = 1", "size: int = 2"))
    registry.add_plugin(path)
    second = registry.load("methods", "mine")
    assert (vars(first())["size"], vars(second())["size"]) == (1, 2)
    assert registry.source_hash(first) != registry.source_hash(second)


def test_an_edit_that_breaks_a_plugin_removes_it(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", METHOD)
    registry.add_plugin(path)
    write(path, "def f(:")
    assert f"has a syntax error at {path}:1" in refusal(path)
    assert "mine" not in registry.names("methods")
    assert "steerbench_plugins.mine" not in sys.modules


def test_plugin_files_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    registry.add_plugin(write(tmp_path / "mine.py", METHOD))
    cases = {
        tmp_path / "missing.py": "does not exist; check the path",
        write(tmp_path / "mine.txt", METHOD): "is not a Python file",
        write(tmp_path / "my-method.py", METHOD): "rename it to a Python identifier",
        write(tmp_path / "unsteered.py", METHOD): "has the name of method 'unsteered' (built in); rename the file",
        write(tmp_path / "inner" / "mine.py", METHOD): f"has the name of another plugin, {tmp_path / 'mine.py'}",
        write(tmp_path / "nothing.py", "x = 1"): "defines no Steerer and no Task; add one",
        write(tmp_path / "both.py", METHOD + TASK): "defines both a Steerer and a Task",
        write(tmp_path / "two.py", METHOD + "\n    class B(Mine): pass"): "defines Mine and B",
    }
    before = registry.sources("methods")
    for path, expected in cases.items():
        assert expected in refusal(path)
    assert registry.sources("methods") == before


def test_a_users_own_error_passes_as_it_is(tmp_path: Path) -> None:
    text = "from steerbench import SteerbenchError\nraise SteerbenchError('set MY_KEY first.')"
    assert refusal(write(tmp_path / "mine.py", text)) == "set MY_KEY first."


# Identity and references


def test_source_hash_is_that_of_the_file_when_it_was_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", METHOD)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    registry.add_plugin(path)
    cls = registry.load("methods", "mine")
    path.write_text("edited while a run goes on")
    assert registry.source_hash(cls) == expected


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ('"""Old."""\nX = 1\n', '"""New,\nand longer."""\nX = 1\n', True),
        ("class A:\n    x: int = 1\n    'old'\n", "class A:\n    x: int = 1\n    'new'\n", True),
        ("def f():\n    'old'; 'ä'; return 1\n", "def f():\n    'ö'; 'new'; return 1\n", True),
        ("X = 1\n", "X = 2\n", False),
        ("X = 'old'\n", "X = 'new'\n", False),
        ("'a'; X = 1\n", "'a'; X = 2\n", False),
        ("f('old')\n", "f('new')\n", False),
        ("broken(\n'old'", "broken(\n'new'", False),
    ],
)
def test_documentation_does_not_count(tmp_path: Path, before: str, after: str, same: bool) -> None:
    """A card may be improved after its method was measured."""
    path = tmp_path / "mine.py"
    path.write_text(before, encoding="utf-8")
    first = hash_file(path)
    path.write_text(after, encoding="utf-8")
    assert (hash_file(path) == first) is same


def test_source_hash_needs_a_file() -> None:
    cls = type("Typed", (), {"__module__": "no_such_module"})
    with pytest.raises(SteerbenchError, match="Typed is not defined in a file; move it into one"):
        registry.source_hash(cls)


def test_references_round_trip(tmp_path: Path, methods: Path, publish: list[EntryPoint]) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    write(methods / "my_method.py", METHOD)
    registry.add_plugin(write(folder / "mine.py", METHOD))
    write(tmp_path / "outside.py", METHOD)
    publish.append(EntryPoint("theirs", "outside:Mine", "steerbench.methods"))
    for name in ("my_method", "mine", "theirs"):
        edit = vars(sys.modules[registry.load("methods", name).__module__])["MyEdit"]
        assert registry.qualified(edit) == f"methods/{name}:MyEdit"
        assert registry.resolve(f"methods/{name}:MyEdit") is edit


def test_a_class_that_could_not_be_found_again_has_no_reference() -> None:
    class Local:
        pass

    with pytest.raises(SteerbenchError, match="define the class at the top of its file"):
        registry.qualified(Local)
    with pytest.raises(SteerbenchError, match="define the class in the file of the method that uses it"):
        registry.qualified(Path)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("os:system", "is no class of steerbench or of a plugin"),
        ("os.path:join", "is no class of steerbench or of a plugin"),
        ("steerbenchx.edits:Add", "is no class of steerbench or of a plugin"),
        ("steerbench.__main__:main", "is no class of steerbench or of a plugin"),
        ("steerbench.edits:Add.__init__", "is no class of steerbench or of a plugin"),
        ("results/caa:Add", "is no class of steerbench or of a plugin"),
        ("../caa:Add", "is no class of steerbench or of a plugin"),
        ("", "is no class of steerbench or of a plugin"),
        ("steerbench.engine.install:hook", "is no class of steerbench or of a plugin"),
        ("methods/gone:Add", "unknown method 'gone'"),
    ],
)
def test_references_that_are_refused(reference: str, expected: str) -> None:
    with pytest.raises(SteerbenchError) as error:
        registry.resolve(reference)
    assert expected in str(error.value)


def test_code_that_a_plugin_imports_from_its_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    helper = tmp_path / "beside_it.py"
    helper.write_text("SCALE = 1.0\n")
    late = "        def late(self):\n            from beside_it import SCALE\n            return SCALE\n"
    plugin = write(tmp_path / "with_helper.py", METHOD + late)
    first = registry.source_hash(registry.load("methods", registry.add_plugin(plugin)[1]))
    helper.write_text("SCALE = 50.0\n")
    again = registry.source_hash(registry.load("methods", registry.add_plugin(plugin)[1]))
    assert first != again
    (tmp_path / "unrelated.py").write_text("")
    assert registry.source_hash(registry.load("methods", registry.add_plugin(plugin)[1])) == again


def test_the_file_of_a_built_in_method_is_that_method() -> None:
    file = sys.modules[registry.load("methods", "caa").__module__].__file__
    assert file
    assert registry.add_plugin(file) == ("methods", "caa")


def test_libraries_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is installed by itself lies beside every library there is."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    (folder / "library.py").write_text("SIZE = 1\n")
    file = write(folder / "alone.py", METHOD + "\n    import library\n")
    cls = registry.load("methods", registry.add_plugin(file)[1])
    assert registry.source_hash(cls) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_engine_does_not_count() -> None:
    """Not even for a plugin in the root of a checkout: the version stands for it."""
    assert registry.__file__
    assert not _is_near("steerbench", Path(registry.__file__).parents[1])
    assert _is_near("test_registry", Path(__file__).parent)
