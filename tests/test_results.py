"""The committed leaderboard is what the committed records give, and the README says what it says."""

from pathlib import Path

import pandas as pd
import pytest

from steerbench import Store, leaderboard

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "results" / "testbed"


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return leaderboard(Store(FOLDER).records())


def test_the_leaderboard_comes_from_the_records(table: pd.DataFrame) -> None:
    committed = pd.read_csv(FOLDER / "testbed-leaderboard.csv").astype({"rank": "Int64"})
    pd.testing.assert_frame_equal(table.reset_index(drop=True), committed, rtol=1e-6, check_dtype=False)


def lines_of(file: Path) -> dict[tuple[str, str], list[str]]:
    """Return the lines `| task | method | reward | held-out | gold |` of a document."""
    rows = [line.split("|")[1:-1] for line in file.read_text("utf-8").splitlines()]
    cells = [[cell.strip("` ") for cell in row] for row in rows if len(row) == 5]
    return {(row[0], row[1]): row[2:] for row in cells if row[0].startswith("testbed-")}


@pytest.fixture(scope="module")
def gains(table: pd.DataFrame) -> dict[tuple[str, str], list[str]]:
    return {
        (row["task"], row["method"]): [
            f"{row[f'{name}_gain']:+z.2f} ({row[f'{name}_gain_low']:z.2f} to {row[f'{name}_gain_high']:z.2f})"
            for name in ("reward", "held_out_reward", "gold")
        ]
        for _, row in table.iterrows()
        if row["method"] != "unsteered"
    }


def test_all_gains_stand_beside_the_records(gains: dict[tuple[str, str], list[str]]) -> None:
    assert lines_of(ROOT / "results" / "README.md") == gains


def test_the_readme_shows_some_of_these_gains(gains: dict[tuple[str, str], list[str]]) -> None:
    shown = lines_of(ROOT / "README.md")
    assert len(shown) > 20
    assert shown.items() <= gains.items()


def test_every_row_has_every_seed(table: pd.DataFrame) -> None:
    assert set(table["seeds"]) == {3}
