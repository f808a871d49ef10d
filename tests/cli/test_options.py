"""How the text of an option is read."""

from collections.abc import Callable

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
