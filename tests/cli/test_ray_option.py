"""`--ray`, where the package is not there; and what is said before anything is measured."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from steerbench.bench import ray_cluster

Cli = Callable[..., Result]


@pytest.mark.parametrize("given", [["--ray"], ["--ray-address", "ray://nowhere:10001"]])
def test_without_the_package_the_extra_is_named(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    done = run_cli("--methods", "caa", *given)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line == "error: --ray needs the package ray, which is not installed: pip install 'steerbench[ray]'."


def test_a_dry_run_shows_the_units_and_starts_nothing(run_cli: Cli, tmp_path: Path) -> None:
    done = run_cli("--methods", "caa,static_prompt", "--seeds", "0-1", "--ray", "--dry-run")
    assert done.exit_code == 0, done.output
    title, heads, _, *rows = [line.split() for line in done.stdout.splitlines()]
    assert (title, heads) == (["units", "of", "work"], ["method", "task", "seed"])
    methods = ("unsteered", "caa", "static_prompt")
    assert rows[:6] == [[method, "hh_rlhf", seed] for seed in "01" for method in methods]
    assert "what is ahead" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_the_folder_of_shared_results_is_used_without_ray(run_cli: Cli, tmp_path: Path) -> None:
    sizes = ("--methods", "re_control", "--shared", tmp_path / "shared")
    assert run_cli(*sizes).exit_code == 0
    kinds = {path.name.partition("-")[0] for path in (tmp_path / "shared").iterdir()}
    assert kinds == {"rollouts", "states"}


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_another_engine_is_not_spread(run_cli: Cli, monkeypatch: pytest.MonkeyPatch, more: list[str]) -> None:
    monkeypatch.setattr(ray_cluster, "_ray", lambda: pytest.fail("started"))
    done = run_cli("--methods", "caa", "--ray", "--engine", "vllm", *more)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: a run that is spread over processes generates with transformers, and not with vllm")
    assert line.endswith("leave out --ray or --engine vllm.")
