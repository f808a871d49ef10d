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


def test_the_readme_shows_these_gains(table: pd.DataFrame) -> None:
    """Each line `| task | method | reward | held-out | gold |` of the README is a row of the table."""
    rows = [line.split("|")[1:-1] for line in (ROOT / "README.md").read_text("utf-8").splitlines()]
    shown = {(r[0].strip(), r[1].strip("` ")): [c.strip() for c in r[2:]] for r in rows if len(r) == 5}
    found = {
        (row["task"], row["method"]): [
            f"{row[f'{name}_gain']:+z.2f} ({row[f'{name}_gain_low']:z.2f} to {row[f'{name}_gain_high']:z.2f})"
            for name in ("reward", "held_out_reward", "gold")
        ]
        for _, row in table.iterrows()
        if row["method"] != "unsteered"
    }
    assert found == {key: shown.get(key) for key in found}
