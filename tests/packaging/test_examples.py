"""The Python of the README and of `examples/` runs as it stands, elsewhere and offline."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from steerbench.contract import INVARIANTS
from steerbench.plugins import registry

ROOT = Path(__file__).parents[2]
SHOWN = {
    "read_the_records.py": ["testbed-hh_rlhf", "of reward", "  unsteered: "],
    "steer_a_model.py": ["How do I grow tomatoes?", "  steered: "],
    "write_a_method.py": ["tomatoes"],
    "your_own_pairs.py": ["How do I grow tomatoes?", "tomatoes in a garden"],
}
"""What each script prints, among other things."""
SAME_TOKENS = """
assert len(prompts) > 1 and not inputs["attention_mask"].all(), "prompts of one length need no padding"
rows = ids[:, inputs["input_ids"].shape[1] :].tolist()
for row, reply in zip(rows, generate(lm, prompts, steering), strict=True):
    assert tuple(row[: len(reply.ids)]) == reply.ids
    assert set(row[len(reply.ids) :]) <= {lm.pad_id}
assert generate(lm, prompts) != generate(lm, prompts, steering), "the steering does nothing"
"""


def ran(arguments: list[str], folder: Path) -> str:
    """Run Python, and return what it prints."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a script as Python does, in an empty folder, and returns what it prints."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(registry, "_files", dict(registry._files))

    def run(code: str | Path) -> str:
        script = code if isinstance(code, Path) else tmp_path / "script.py"
        if isinstance(code, str):
            script.write_text(code, encoding="utf-8")
        monkeypatch.setattr(sys, "argv", [str(script)])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_run() -> None:
    assert {path.name for path in (ROOT / "examples").iterdir() if path.suffix == ".py"} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs(name: str, executed: Callable[[Path], str]) -> None:
    script = ROOT / "examples" / name
    assert len(script.read_text(encoding="utf-8").splitlines()) < 40
    printed = executed(script)
    assert [text for text in SHOWN[name] if text not in printed] == []
    assert not list(Path.cwd().iterdir()), "an example leaves nothing behind"


@pytest.mark.slow
def test_the_example_of_a_method_keeps_the_contract(tmp_path: Path) -> None:
    """On two families; with all of them it takes as long as `steerbench check`, which is the same."""
    script = ROOT / "examples" / "write_a_method.py"
    chosen = ["-k", "llama or gpt2", "-p", "no:cacheprovider", "--rootdir=."]
    assert " passed" in ran(["-m", "pytest", "-q", *chosen, str(script)], tmp_path)


def python_of(page: Path) -> str:
    """Return the blocks of Python in a page, one after the other."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


def test_the_readme_steers_the_testbed(executed: Callable[[str], str]) -> None:
    executed(python_of(ROOT / "README.md") + SAME_TOKENS)


def test_the_page_on_python_runs(executed: Callable[[str], str]) -> None:
    executed(python_of(ROOT / "docs" / "python.md"))
    assert {path.name for path in Path.cwd().iterdir()} >= {"polite", "runs"}


class Outcomes:
    """What became of each test of a pytest in this process."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            self.found.append(report.outcome)


def test_what_contributing_says_of_a_method_works(
    cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("method", "task"):  # a task comes with its own test
        assert cli("new", kind, f"my_{kind}").exit_code == 0
    (tmp_path / "test_my_method.py").write_text(python_of(ROOT / "CONTRIBUTING.md"), encoding="utf-8")
    outcomes = Outcomes()
    alone = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--import-mode=importlib", f"--rootdir={tmp_path}"]
    assert pytest.main([*alone, str(tmp_path)], plugins=[outcomes]) == pytest.ExitCode.OK
    assert set(outcomes.found) == {"passed"}
    assert len(outcomes.found) > len(INVARIANTS)


def test_the_readme_steers_another_model(assets: Path, executed: Callable[[str], str]) -> None:
    model = repr(str(assets / "models" / "tinytalk-3m-chat"))
    code = python_of(ROOT / "README.md")
    assert code.count('"testbed"') == 1
    executed(code.replace('"testbed"', model) + SAME_TOKENS)
