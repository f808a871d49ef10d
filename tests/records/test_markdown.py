"""The tables for a README: the numbers of the leaderboard, between the marks and nowhere else."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import Result

from steerbench import SteerbenchError, Store, leaderboard
from steerbench.records.markdown import END, START, markdown, write_markdown


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """One task, with a sure gain, a doubtful one, and a method of one seed where another may fit otherwise."""
    gain = {"reward_gain": [0.512, -0.001, 0.2, 0.0], "reward_gain_low": [0.4, -0.1, None, 0.0]}
    gain |= {"reward_gain_high": [0.6, 0.1, None, 0.0], "reward_gain_p_holm": [0.01, 0.9, 0.9, None]}
    empty = {f"{n}_gain{e}": [None] * 4 for n in ("held_out_reward", "gold") for e in ("", "_low", "_high", "_p_holm")}
    means = {
        "fits": pd.array([3, 1, None, 1], dtype="Int64"),
        "win_rate": 0.5,
        "worse": 0.25,
        "kl": [0.1234, 0.2, None, 0],
        "diversity": 0.8,
        "length": 46.6,
        "decode_ratio": 1.1,
        "decode_floor": None,
        "matched": [True, False, False, None],
        "at_the_end": None,
    }
    methods = ["caa", "static_prompt:text=a|b", "iti", "unsteered"]
    ranks = pd.array([1, 2, None, 2], dtype="Int64")
    return pd.DataFrame({"task": "shp", "rank": ranks, "method": methods, **gain, **empty, **means})


def test_a_table_reads_as_it_should(table: pd.DataFrame) -> None:
    assert markdown(table).splitlines() == [
        "| # | shp | reward | win | worse | KL | div. | length | time × |",
        "| --: | :-- | --: | --: | --: | --: | --: | --: | --: |",
        "| 1 | `caa` | **+0.51** (0.40 to 0.60) | 0.50 | 0.25 | 0.123 | 0.80 | 47 | 1.10 |",
        r"| 2 | `static_prompt:text=a\|b` | +0.00 (-0.10 to 0.10) | 0.50 | 0.25 | 0.200 (not matched) | 0.80 | 47 | 1.10 |",  # noqa: E501
        "| – | `iti` (one seed) | +0.20 | 0.50 | 0.25 | – | 0.80 | 47 | 1.10 |",
        "| 2 | `unsteered` |  | 0.50 | 0.25 | 0.000 | 0.80 | 47 | 1.10 |",
    ]


def test_what_was_chosen_at_an_end_is_marked_and_explained(table: pd.DataFrame) -> None:
    lines = markdown(table.assign(at_the_end=["relative_norm", None, "layer, relative_norm", None])).splitlines()
    marked = [line.split("|")[2].strip() for line in lines if "†" in line and line.startswith("|")]
    assert marked == ["`caa` †", "`iti` (one seed) †"]
    assert lines[-2:] == ["", lines[-1]]
    assert lines[-1].startswith("† Tuning chose a value at an end of its range")


def test_what_is_far_from_the_unsteered_model_is_marked_and_explained(table: pd.DataFrame) -> None:
    lines = markdown(table.assign(kl=[0.5, 4.27, None, 0.0])).splitlines()
    assert [line for line in lines if "‡" in line][:-1] == [line for line in lines if "4.270 ‡ (not matched)" in line]
    assert lines[-1].startswith("‡ More than one nat per token")
    assert "‡" not in markdown(table)


def test_tasks_have_tables_of_their_own(table: pd.DataFrame) -> None:
    both = pd.concat([table.assign(task="hh_rlhf"), table])
    first, second = markdown(both).split("\n\n")
    assert first.startswith("| # | hh_rlhf |")
    assert second == markdown(table)


def test_only_what_is_between_the_marks_changes(table: pd.DataFrame, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{START}\nold\n{END}\n\nThe rest.\n")
    for _ in range(2):  # a second time changes nothing
        write_markdown(table, readme)
        assert readme.read_text() == f"# Title\n\n{START}\n\n{markdown(table)}\n\n{END}\n\nThe rest.\n"


def test_a_new_file_holds_the_tables_alone(table: pd.DataFrame, tmp_path: Path) -> None:
    write_markdown(table, tmp_path / "new" / "table.md")
    assert (tmp_path / "new" / "table.md").read_text() == f"{START}\n\n{markdown(table)}\n\n{END}\n"


def test_a_file_without_marks_is_left_alone(table: pd.DataFrame, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    for text in ("# Title\n", f"{START} alone", f"{END} before {START}"):
        readme.write_text(text)
        with pytest.raises(SteerbenchError, match="has no place for the tables"):
            write_markdown(table, readme)
        assert readme.read_text() == text
    with pytest.raises(SteerbenchError, match="cannot read"):
        write_markdown(table, tmp_path)
    readme.write_bytes("# Übersicht".encode("latin-1"))
    with pytest.raises(SteerbenchError, match="as UTF-8"):
        write_markdown(table, readme)


def test_line_ends_stay_as_they_are(table: pd.DataFrame, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_bytes(f"# Title\r\n\r\n{START}\r\n{END}\r\n\r\nThe rest.\r\n".encode())
    write_markdown(table, readme)
    found = readme.read_bytes()
    assert found.startswith(b"# Title\r\n\r\n")
    assert found.endswith(b"The rest.\r\n")
    assert found.count(b"\n") == found.count(b"\r\n")


def test_an_empty_file_is_a_new_one(table: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "table.md").touch()
    write_markdown(table, tmp_path / "table.md")
    assert markdown(table) in (tmp_path / "table.md").read_text()


def test_the_command_writes_what_it_ranks(
    run_cli: Callable[..., Result], cli: Callable[..., Result], tmp_path: Path
) -> None:
    assert run_cli("--methods", "caa").exit_code == 0
    done = cli("leaderboard", tmp_path / "runs", "--markdown", tmp_path / "table.md")
    assert done.exit_code == 0, done.stderr
    assert f"written: {tmp_path / 'table.md'}" in done.stdout
    assert markdown(leaderboard(Store(tmp_path / "runs").records())) in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(("rows", "methods"), [(1, ["unsteered"]), (2, ["caa", "unsteered"]), (9, None)])
def test_the_first_rows_of_the_first_task(table: pd.DataFrame, rows: int, methods: list[str] | None) -> None:
    methods = methods or list(table["method"])
    both = pd.concat([table.assign(task="hh_rlhf"), table])
    shown, left = markdown(both, rows).split("\n\n")
    assert shown == markdown(both[(both["task"] == "hh_rlhf") & both["method"].isin(methods)])
    missing = [f"{4 - len(methods)} rows of `hh_rlhf`"] if len(methods) < 4 else []
    assert left == f"Left out: {', '.join([*missing, '4 rows of `shp`'])}."
    assert markdown(table, 4) == markdown(table)


def test_rows_need_a_file_to_go_to(cli: Callable[..., Result], tmp_path: Path) -> None:
    done = cli("leaderboard", tmp_path, "--rows", "8")
    assert done.exit_code == 2
    assert "--rows is for a table in Markdown" in done.stderr
