"""A real distribution of somebody else, with a method and a task: installed, listed, run, and saved like a built-in."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from given_options import last_of_each

from steerbench import Store

PLUGIN = Path(__file__).parents[1] / "plugin_dist"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--isolated"]
OFFLINE = ["--no-deps", "--no-index", "--no-build-isolation"]
MAIN = "from steerbench.cli import main; main()"
ORIGIN = "steerbench-example-plugin 0.1.0"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the distribution was installed, from a copy, so that nothing is left in the tree."""
    source, target = tmp_path_factory.mktemp("source") / "dist", tmp_path_factory.mktemp("site")
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*PIP, "install", *OFFLINE, "--target", target, source], check=True, capture_output=True)
    return target


def python(code: str, *args: object, folder: Path, site: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run code in a new interpreter outside the repository."""
    environment = {**os.environ, "PYTHONPATH": str(site)} if site else None
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_it_is_listed_and_run_from_the_command_line(site: Path, tmp_path: Path, run_args: list[str]) -> None:
    listed = python(MAIN, "list", folder=tmp_path, site=site).stdout
    words = listed.split()
    assert {"constant_shift", "toy"} <= set(words)
    assert " ".join(words).count(f"({ORIGIN})") == 2

    rows = [{"question": f"Is rye number {i} sour?", "good": f"Often, {i}.", "bad": "No idea."} for i in range(30)]
    data = tmp_path / "toy.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"question": "Why?"}]))
    methods = "constant_shift:strength=2,constant_shift+caa"
    given = [*run_args, "--tasks", "toy", "--data", data, "--methods", methods, "--out", "runs"]
    args = ["run", *last_of_each(given)]
    done = python(MAIN, *args, folder=tmp_path, site=site)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("toy\n")
    assert "Left out: 1 missing text." in done.stdout
    assert "3 records in runs, 0 of them from before" in done.stdout
    records = {r.method: r for r in Store(tmp_path / "runs").records()}
    assert list(records) == ["constant_shift+caa", "constant_shift:strength=2", "unsteered"]
    (part,) = records["constant_shift:strength=2"].parts
    assert (part["name"], part["hyperparameters"]) == ("constant_shift", {"layer": None, "strength": 2.0})
    assert list(records["unsteered"].examples["response"]) != list(records["constant_shift+caa"].examples["response"])


def test_without_it_its_names_are_unknown(tmp_path: Path) -> None:
    assert "constant_shift" not in python(MAIN, "list", folder=tmp_path).stdout


USE = """
import json
from pathlib import Path
from types import SimpleNamespace
from steerbench import FitContext, Steering
from steerbench.plugins import spec
from steerbench.contract import tiny
from steerbench.plugins import registry

found = [str(source) for kind in registry.KINDS for source in registry.sources(kind) if source.origin != "built in"]
(method,) = spec.build(spec.parse("constant_shift:strength=2")[0])
task = registry.load("tasks", "toy")()
context = FitContext(lm=tiny.language_model("llama"), examples=(), reward=SimpleNamespace())
method.fit(context).save(Path("saved"))
(placed,) = Steering.load(Path("saved")).edits
example = task.parse({"question": "Is rye bread sour?", "good": "Often.", "bad": "No idea."})
print(json.dumps([found, spec.hyperparameters(method), example.chosen, str(placed.site), placed.edit.strength]))
"""


def test_its_steering_is_saved_and_loaded(site: Path, tmp_path: Path) -> None:
    done = python(USE, folder=tmp_path, site=site)
    assert done.returncode == 0, done.stderr
    found, hyperparameters, reply, place, strength = json.loads(done.stdout)
    assert found == [f"method 'constant_shift' ({ORIGIN})", f"task 'toy' ({ORIGIN})"]
    assert hyperparameters == {"strength": 2.0, "layer": None}
    assert (reply, place, strength) == ("Often.", "resid_post.1", 2.0)
