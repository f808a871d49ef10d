"""Cards are read without importing anything, say why there is none, and have a form that every built-in keeps."""

import importlib
import inspect
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from steerbench import SteerbenchError
from steerbench.plugins import registry
from steerbench.plugins.docstrings import card
from steerbench.plugins.plugin import KINDS
from steerbench.plugins.registry import BUILT_IN, Source

SOURCES = [source for kind in KINDS for source in registry.sources(kind)]
BUILT_INS = {f"{source.kind}/{source.name}": source for source in SOURCES if source.origin == BUILT_IN}
METHODS = sorted(source.name for source in BUILT_INS.values() if source.kind == "methods")

SECTIONS = ("Paper", "Differences", "Defaults", "Cost", "Pitfalls")
WITHOUT = {
    "unsteered": {"Paper", "Differences", "Defaults", "Pitfalls"},
    "random_direction": {"Paper", "Differences"},
    "shuffled_labels": {"Paper", "Differences"},
    "best_prompt": {"Paper"},
    "saved": {"Paper"},
}
"""Baseline, controls, a chosen prompt, and what was fitted elsewhere: nobody's method."""


def entry_point(module: str) -> Source:
    return Source("methods", "theirs", "theirs 1.0", module)


def refusal(source: Source) -> str:
    with pytest.raises(SteerbenchError) as error:
        card(source)
    return str(error.value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which modules can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


# The form


@pytest.mark.parametrize("name", METHODS)
def test_the_card_of_a_method_has_every_section(name: str) -> None:
    text = card(BUILT_INS[f"methods/{name}"])
    missing = {section for section in SECTIONS if not re.search(rf"\b{section}\b", text)}
    assert missing == WITHOUT.get(name, set())


def test_exceptions_are_for_methods_that_exist() -> None:
    assert set(WITHOUT) <= set(METHODS)


@pytest.mark.parametrize("name", sorted(BUILT_INS))
def test_a_card_is_the_docstring_and_fits_an_indented_page(name: str) -> None:
    source = BUILT_INS[name]
    text = card(source)
    assert text == inspect.cleandoc(importlib.import_module(source.module).__doc__ or "")
    assert max(map(len, text.splitlines())) <= 120


# Where it is found


def test_nothing_is_imported(folder: Path) -> None:
    """Neither the module nor the packages that it lies in."""
    inner = folder / "cards_outer" / "inner"
    inner.mkdir(parents=True)
    for file in (inner.parent / "__init__.py", inner / "__init__.py"):
        file.write_text("raise RuntimeError('imported')")
    (inner / "deep.py").write_text('"""Deep."""\nraise RuntimeError("imported")\n')
    (inner.parent / "plain").mkdir()  # a namespace package
    (inner.parent / "plain" / "deep.py").write_text('"""Plain."""\nraise RuntimeError("imported")\n')
    assert card(entry_point("cards_outer.inner.deep")) == "Deep."
    assert card(entry_point("cards_outer.plain.deep")) == "Plain."
    assert not any(name.startswith("cards_outer") for name in sys.modules)


def test_a_package_has_the_card_of_its_init(folder: Path) -> None:
    (folder / "cards_package").mkdir()
    (folder / "cards_package" / "__init__.py").write_text('"""The package."""')
    assert card(entry_point("cards_package")) == "The package."


def test_a_plugin_file_is_found_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text('"""Mine.\n\n    v = [h] \\sum\n"""\n', encoding="utf-8")  # an escape that Python warns of
    source = Source("methods", "mine", str(file), f"{registry.PLUGINS}.mine")
    assert card(source) == "Mine.\n\nv = [h] \\sum"
    file.unlink()
    assert refusal(source) == f"cannot read {file}: No such file or directory; reinstall it."


# What can be wrong


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"x = 1", "has no docstring; write what it does at its top."),
        (b"", "has no docstring; write what it does at its top."),
        (b'f"""Not {1} constant."""', "has no docstring; write what it does at its top."),
        (b'"""Fine."""\ndef f(:', "is no Python source: "),
        (b'"""\xff"""', "is no Python source: "),
        (b'"""\0"""', "is no Python source: "),
    ],
    ids=["none", "empty", "not constant", "syntax", "encoding", "null"],
)
def test_a_broken_file_is_explained(folder: Path, content: bytes, expected: str) -> None:
    (folder / "cards_broken.py").write_bytes(content)
    assert f"{folder / 'cards_broken.py'} {expected}" in refusal(entry_point("cards_broken"))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("cards_missing", "no file of module 'cards_missing' was found; reinstall or upgrade its distribution."),
        (
            "cards_missing.inner",
            "no file of module 'cards_missing.inner' was found; reinstall or upgrade its distribution.",
        ),
        ("json.missing", "no file of module 'json.missing' was found; reinstall or upgrade its distribution."),
        ("this.inner", "no file of module 'this.inner' was found; reinstall or upgrade its distribution."),
        ("", "no file of module '' was found; reinstall or upgrade its distribution."),
        ("made", "no file of module 'made' was found; reinstall or upgrade its distribution."),
        ("json..decoder", "no file of module 'json..decoder' was found; reinstall or upgrade its distribution."),
        ("itertools", "module 'itertools' has no Python source."),
    ],
)
def test_a_module_without_a_source_is_explained(module: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made", ModuleType("made"))
    assert refusal(entry_point(module)) == expected
    assert "this" not in sys.modules


def test_entry_points_of_a_distribution_have_cards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cards_outside.py").write_text('"""Outside."""')
    point = EntryPoint("outside", "cards_outside:Method", "steerbench.methods")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == point.group else [])
    (source,) = (source for source in registry.sources("methods") if source.origin != BUILT_IN)
    assert card(source) == "Outside."
