"""Trackers are told what records hold, each in a run of its own, and no fault of theirs costs a record."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_records import make as made
from typer.testing import Result

from steerbench.errors import SteerbenchError
from steerbench.records import trackers
from steerbench.records.store import Store
from steerbench.records.trackers import numbers_of, settings_of, teller

WANDB = """
calls = []
def init(**given): calls.append(("init", given))
def log(numbers): calls.append(("log", numbers))
def finish(): calls.append(("finish",))
"""
MLFLOW = """
from contextlib import contextmanager
calls = []
def set_experiment(name): calls.append(("experiment", name))
@contextmanager
def start_run(run_name):
    calls.append(("start", run_name))
    yield
    calls.append(("end",))
def log_params(given): calls.append(("params", given))
def log_metrics(numbers): calls.append(("metrics", numbers))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Put a package of a name, with the calls of a tracker, where it is found first."""
    before = {name: sys.modules.pop(name, None) for name in ("wandb", "trackio", "mlflow")}

    def make(name: str, source: str) -> None:
        folder = tmp_path / "packages"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(folder)

    yield make
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_record_is_a_run_with_its_settings_and_means(name: str, stand_in: Callable[[str, str], None]) -> None:
    stand_in(name, WANDB)
    record = made("caa")
    teller(name, "mine")(record)
    assert sys.modules[name].calls == [
        ("init", {"project": "mine", "name": record.folder_name, "config": settings_of(record)}),
        ("log", numbers_of(record)),
        ("finish",),
    ]


def test_mlflow_is_told_by_its_own_calls(stand_in: Callable[[str, str], None]) -> None:
    stand_in("mlflow", MLFLOW)
    record = made("caa")
    teller("mlflow")(record)
    assert sys.modules["mlflow"].calls == [
        ("experiment", "steerbench"),
        ("start", record.folder_name),
        ("params", settings_of(record)),
        ("metrics", numbers_of(record)),
        ("end",),
    ]


def test_settings_name_the_method_and_its_hyperparameters() -> None:
    record = made("caa")
    told = settings_of(record)
    assert told["method"] == record.method
    assert told["identity"] == record.identity
    assert told["caa.strength"] == 1.0
    assert told["task"] == record.labels["task"]
    assert all(isinstance(value, float) for value in numbers_of(record).values())
    assert numbers_of(record)["reward"] == record.metrics["reward"]


def test_a_tracker_that_fails_is_told_of_once_and_left_alone(stand_in: Callable[[str, str], None]) -> None:
    stand_in("wandb", WANDB.replace('calls.append(("init", given))', 'raise OSError("no network")'))
    tell = teller("wandb")
    with pytest.warns(UserWarning, match=r"wandb could not be told \(OSError: no network\) and is asked no more"):
        tell(made("caa"))
    tell(made("iti"))  # a second warning would be an error here
    assert sys.modules["wandb"].calls == []


def test_an_unknown_tracker_and_a_missing_package_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SteerbenchError, match=r"unknown tracker 'wanbd'\. Did you mean 'wandb'"):
        teller("wanbd")
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(SteerbenchError, match=r"--log mlflow needs the package mlflow.*'steerbench\[mlflow\]'"):
        teller("mlflow")


def test_a_run_tells_of_what_it_measured_and_not_of_what_it_found(
    run_cli: Callable[..., Result], stand_in: Callable[[str, str], None], tmp_path: Path
) -> None:
    stand_in("trackio", WANDB)
    assert run_cli("--methods", "static_prompt", "--log", "trackio", "--log-project", "mine").exit_code == 0
    records = Store(tmp_path / "runs").records()
    runs = [call[1] for call in sys.modules["trackio"].calls if call[0] == "init"]
    assert {run["name"] for run in runs} == {record.folder_name for record in records}
    assert {run["project"] for run in runs} == {"mine"}
    sys.modules["trackio"].calls.clear()
    assert run_cli("--methods", "static_prompt", "--log", "trackio").exit_code == 0
    assert sys.modules["trackio"].calls == []


@pytest.mark.slow
def test_the_real_trackio_keeps_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio", reason="pip install 'steerbench[trackio]'")
    teller("trackio", "mine")(made("caa"))
    assert list(tmp_path.rglob("mine*"))
