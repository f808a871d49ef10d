"""The pages on writing methods and tasks: the reference is that of the docstrings, and what they show works."""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest

from steerbench import Decoding, LanguageModel, Steerer, Steering, add_plugin, fit, generate
from steerbench.contract import check_method, tiny
from steerbench.contract.interface_page import END, PAGES, START, members, reference
from steerbench.records.markdown import write_between

DOCS = Path(__file__).parents[2] / "docs"
METHODS = re.findall(
    r"^class (\w+)\(Steerer\)", (DOCS / "writing_methods.md").read_text(encoding="utf-8"), re.MULTILINE
)


def python_of(page: str) -> str:
    text = (DOCS / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The Python of the page on methods, as a module."""
    file = tmp_path_factory.mktemp("page") / "page_on_methods.py"
    file.write_text(python_of("writing_methods.md"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_docstrings_say(name: str, tmp_path: Path) -> None:
    copy = tmp_path / name
    copy.write_text((DOCS / name).read_text(encoding="utf-8"), encoding="utf-8")
    write_between(copy, START, END, reference(name))
    assert copy.read_text(encoding="utf-8") == (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("namespace", "name"),
    [(space, name) for spaces in PAGES.values() for space, names in spaces.items() for name in names.split()],
)
def test_every_name_and_every_field_says_what_it_is(namespace: str, name: str) -> None:
    thing = getattr(importlib.import_module(namespace), name)
    if isinstance(thing, type):
        (node,) = ast.parse(dedent(inspect.getsource(thing))).body
        assert isinstance(node, ast.ClassDef)
        assert ast.get_docstring(node)
        assert [label for label, text in members(node) if len(text.split()) < 2] == []


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_the_page_steers(name: str, page: ModuleType, llama: LanguageModel) -> None:
    method: type[Steerer] = getattr(page, name)
    steering = fit(method(), llama, tiny.examples()[:8], tiny.VowelReward())
    decoding = Decoding(max_new_tokens=6, temperature=1.0)

    def replies(steering: Steering) -> list[str]:
        return [r.text for r in generate(llama, ["Why?", "How?"], steering, decoding, reward=tiny.VowelReward())]

    assert replies(steering) != replies(Steering())


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_the_page_keeps_the_contract(name: str, page: ModuleType) -> None:
    _, plugin = add_plugin(getattr(page, name))
    assert [result for result in check_method(plugin, ["llama"]) if result.problem] == []


def test_the_page_on_tasks_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = compile(python_of("writing_tasks.md"), "page_on_tasks", "exec")
    module = sys.modules["page_on_tasks"] = ModuleType("page_on_tasks")
    exec(code, vars(module))
    assert (tmp_path / "questions.csv").exists()
