"""A real distribution of somebody else, with a method and a task: installed, listed, run, and saved like a built-in."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from given_options import last_of_each
from typer.testing import Result

from steerbench import FitContext, Steering, Store
from steerbench.contract import tiny
from steerbench.plugins import registry, spec
from steerbench.plugins.plugin import KINDS

PLUGIN = Path(__file__).parents[1] / "plugin_dist"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--isolated"]
OFFLINE = ["--no-deps", "--no-index", "--no-build-isolation"]
ORIGIN = "steerbench-example-plugin 0.1.0"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the distribution was installed, from a copy, so that nothing is left in the tree."""
    source, target = tmp_path_factory.mktemp("source") / "dist", tmp_path_factory.mktemp("site")
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*PIP, "install", *OFFLINE, "--target", target, source], check=True, capture_output=True)
    return target


def listed(folder: Path, site: Path | None = None) -> str:
    """Return what `steerbench list` says in a new interpreter outside the repository."""
    environment = {**os.environ, "PYTHONPATH": str(site)} if site else None
    command = [sys.executable, "-c", "from steerbench.cli import main; main()", "list"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split())


def test_it_is_listed(site: Path, tmp_path: Path) -> None:
    text = listed(tmp_path, site)
    assert {"constant_shift", "toy"} <= set(text.split())
    assert text.count(f"({ORIGIN})") == 2
    assert "constant_shift" not in listed(tmp_path)


def test_it_is_run_from_the_command_line(
    site: Path, tmp_path: Path, run_args: list[str], cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"Is rye number {i} sour?", "good": f"Often, {i}.", "bad": "No idea."} for i in range(30)]
    data = tmp_path / "toy.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"question": "Why?"}]))
    methods = "constant_shift:strength=2,constant_shift+caa"
    given = [*run_args, "--tasks", "toy", "--data", data, "--methods", methods, "--out", "runs"]
    args = ["run", *last_of_each(given)]
    done = cli(*args)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("toy\n")
    assert "Left out: 1 missing text." in done.stdout
    assert "3 records in runs, 0 of them from before" in done.stdout
    records = {r.method: r for r in Store(tmp_path / "runs").records()}
    assert list(records) == ["constant_shift+caa", "constant_shift:strength=2", "unsteered"]
    (part,) = records["constant_shift:strength=2"].parts
    assert (part["name"], part["hyperparameters"]) == ("constant_shift", {"layer": None, "strength": 2.0})
    assert list(records["unsteered"].examples["response"]) != list(records["constant_shift+caa"].examples["response"])


def test_its_steering_is_saved_and_loaded(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    found = [source for kind in KINDS for source in registry.sources(kind) if source.origin != "built in"]
    assert list(map(str, found)) == [f"method 'constant_shift' ({ORIGIN})", f"task 'toy' ({ORIGIN})"]
    (method,) = spec.build(spec.parse("constant_shift:strength=2")[0])
    assert spec.hyperparameters(method) == {"strength": 2.0, "layer": None}
    context = FitContext(lm=tiny.language_model("llama"), examples=(), reward=SimpleNamespace())  # type: ignore[arg-type]
    method.fit(context).save(tmp_path / "saved")
    (placed,) = Steering.load(tmp_path / "saved").edits
    assert (str(placed.site), vars(placed.edit)["strength"]) == ("resid_post.1", 2.0)
    example = registry.load("tasks", "toy")().parse({"question": "Is rye bread sour?", "good": "Often.", "bad": "No."})
    assert example.chosen == "Often."
