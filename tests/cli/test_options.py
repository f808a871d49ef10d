"""How the text of an option is read."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from steerbench.cli.options import numbers


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3", (3,)),
        ("0,1,2", (0, 1, 2)),
        ("0-2", (0, 1, 2)),
        ("0-2,5", (0, 1, 2, 5)),
        ("7, 1 - 2", (7, 1, 2)),
        ("4-4", (4,)),
        ("-1", (-1,)),
    ],
)
def test_seeds_are_numbers_and_ranges(text: str, found: tuple[int, ...]) -> None:
    assert numbers(text) == found


@pytest.mark.parametrize("text", ["a", "0-", "2-0", "0-1-2", "0..2", "1.5", "0-a"])
def test_what_is_no_seed_is_told_what_seeds_are(run_cli: Callable[..., Result], text: str) -> None:
    done = run_cli("--methods", "caa", "--seeds", text)
    assert done.exit_code == 2
    assert done.stderr == (
        f"error: --seeds {text!r} must be whole numbers separated by commas, or ranges: "
        f"0,1,2 or 0-2; 3 is the one seed 3.\n"
    )


def test_the_help_says_what_one_number_means(cli: Callable[..., Result]) -> None:
    assert "Seeds: 0,1,2 or 0-2; 3 is the one seed 3." in " ".join(cli("run", "--help").stdout.split())


@pytest.mark.parametrize("name", ["./nowhere", "nobody/nothing", "nothing"])
def test_a_model_is_looked_for_before_its_reward_is_asked_for(
    cli: Callable[..., Result], tmp_path: Path, name: str
) -> None:
    done = cli("run", "--model", name, "--methods", "caa", "--out", tmp_path / "runs")
    assert done.exit_code == 2
    assert "reward" not in done.stderr
    assert "check the path" in done.stderr.lower() or "Check the name, " in done.stderr


def test_a_model_that_is_there_needs_a_reward(cli: Callable[..., Result], world: Path, tmp_path: Path) -> None:
    done = cli("run", "--model", world / "lm", "--methods", "caa", "--out", tmp_path / "runs")
    assert done.exit_code == 2
    assert "needs a reward model for hh_rlhf; give one with --reward-model." in done.stderr


@pytest.mark.parametrize("command", [["latency"], ["judge", "runs", "--endpoint", "x", "--judge-model", "y"]])
def test_a_seed_below_0_is_told_with_the_usage(cli: Callable[..., Result], command: list[str]) -> None:
    done = cli(*command, "--seed", "-1")
    assert done.exit_code == 2
    assert "Invalid value for '--seed'" in done.stderr
