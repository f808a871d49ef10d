"""A run leaves a file that runs it again; a run that is only asked for says what it would come to."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from steerbench.records.store import Store

Cli = Callable[..., Result]


def test_what_a_run_leaves_runs_it_again(run_cli: Cli, cli: Cli, tmp_path: Path) -> None:
    assert run_cli("--methods", "caa,static_prompt", "--seeds", "0-1").exit_code == 0
    study = tmp_path / "runs" / "study.toml"
    values = tomllib.loads(study.read_text())
    assert (values["methods"], values["seeds"], values["n-examples"]) == ("caa,static_prompt", "0-1", 4)
    assert "out" not in values
    again = cli("run", study, "--out", tmp_path / "runs")
    assert again.exit_code == 0, again.output
    assert "6 records" in again.output
    assert "6 of them from before" in " ".join(again.output.split())


def test_the_command_line_goes_before_the_file(run_cli: Cli, cli: Cli, tmp_path: Path) -> None:
    assert run_cli("--methods", "caa").exit_code == 0
    other = cli("run", tmp_path / "runs" / "study.toml", "--methods", "static_prompt", "--out", tmp_path / "other")
    assert other.exit_code == 0, other.output
    assert {r.method for r in Store(tmp_path / "other").records()} == {"unsteered", "static_prompt"}


def test_lists_and_switches_are_read(cli: Cli, tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text('methods = ["caa", "nothing"]\nsweep = true\n')
    done = cli("run", study)
    assert done.exit_code == 2
    assert "nothing" in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("n-exampels = 3", "n-examples"),
        ('n-examples = "many"', "valid integer"),
        ("n-examples = 0", "n-examples"),
        ("sweep = 3", "true or false"),
        ("methods = true", "no switch"),
        ("[methods]\ncaa = 1", "is a table"),
        ("methods = ", "is no study file"),
        (None, "is no study file: No such file"),
    ],
)
def test_a_mistake_in_the_file_is_answered(cli: Cli, tmp_path: Path, text: str | None, says: str) -> None:
    study = tmp_path / "study.toml"
    if text is not None:
        study.write_text(text)
    done = cli("run", study)
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.split()), done.stderr


def test_a_dry_run_tells_what_is_ahead_and_writes_nothing(run_cli: Cli, tmp_path: Path) -> None:
    done = run_cli("--methods", "caa,static_prompt", "--seeds", "0-1", "--dry-run")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "runs").exists()
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("hh_rlhf")]
    assert row.split()[:4] == ["hh_rlhf", "6", "0", "24"]
    assert re.search(r"\d (s|min|h) +\d+\.\d MB$", row)
    assert run_cli("--methods", "caa", "--seeds", "0-1").exit_code == 0
    rest = run_cli("--methods", "caa,static_prompt", "--seeds", "0-1", "--dry-run")
    (row,) = [line for line in rest.stdout.splitlines() if line.startswith("hh_rlhf")]
    assert row.split()[:4] == ["hh_rlhf", "6", "4", "8"]


def test_a_dry_run_counts_the_trials_of_tuning(run_cli: Cli) -> None:
    done = run_cli("--methods", "caa", "--tune", "3", "--n-validation", "2", "--dry-run")
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("hh_rlhf")]
    assert row.split()[3] == str(2 * (4 + 3 * 2))
