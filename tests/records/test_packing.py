"""Packed studies: the same records in three files, or an error that names the damaged one."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_records import make
from typer.testing import CliRunner

from steerbench import Record, SteerbenchError, Store
from steerbench.cli import app
from steerbench.records.packing import PACKED, pack

FIRST_LAYOUT = Path(__file__).parents[1] / "support" / "first_layout"


def study() -> list[Record]:
    """Records of two protocols, whose tables differ in columns, types and length."""
    caa, other = make("caa"), make("caa", seed=1, n_examples=7)
    few = other.examples.head(7).assign(sample=range(7), reward=2, note=[None, "a", "", "b", "ü\n", "\u2028", "c"])
    many = caa.examples.assign(kl=[None, *([0.1] * 19)], good=True, big=2**60 + 1)
    return [make("unsteered"), replace(caa, examples=many), replace(other, examples=few)]


def same(found: Sequence[Record], wanted: Sequence[Record]) -> bool:
    """Whether records are equal, in the order of their folders' names; their tables are compared exactly."""
    wanted = sorted(wanted, key=lambda record: record.folder_name)
    for one, other in zip(found, wanted, strict=True):
        pd.testing.assert_frame_equal(one.examples, other.examples, check_exact=True)
    return list(found) == wanted


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    pack(study(), tmp_path / "packed")
    assert same(Store(tmp_path / "packed").records(), study())
    assert {path.name for path in (tmp_path / "packed").iterdir()} == {
        "protocol.json",
        "records.jsonl",
        "examples.parquet",
    }
    assert len(json.loads((tmp_path / "packed" / "protocol.json").read_text())) == 2


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    pack(study(), tmp_path / "one")
    pack(study()[::-1], tmp_path / "other")
    pack(Store(tmp_path / "one").records(), tmp_path / "again")
    one, other, again = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "other", "again"))
    assert one == other == again


def test_a_folder_may_hold_both_forms(tmp_path: Path) -> None:
    unsteered, caa, other = study()
    Store(tmp_path).write(unsteered)
    pack([caa], tmp_path / "packed")
    Store(tmp_path / "packed").write(other)
    assert len(Store(tmp_path).records()) == 3
    for record in (unsteered, caa):
        assert Store(tmp_path).find(record.identity) == record
    assert Store(tmp_path / "packed").find(caa.identity) == caa
    assert Store(tmp_path / "packed").find(other.identity) == other
    assert Store(tmp_path).find("0" * 64) is None


def test_what_a_killed_process_left_is_no_study(tmp_path: Path) -> None:
    pack(study(), tmp_path / ".partial-1")
    assert Store(tmp_path).records() == []
    assert Store(tmp_path).find(study()[0].identity) is None


def rewrite(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Path], object]:
    """Return what changes the lines of a file of JSON lines."""

    def spoil(path: Path) -> None:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        change(lines)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    return spoil


def shorten(path: Path) -> None:
    """Leave out the last row of a table."""
    pd.read_parquet(path).iloc[:-1].to_parquet(path, index=False)


def swap(path: Path) -> None:
    """Turn the rows of a table round: all there, but of other records."""
    pd.read_parquet(path).iloc[::-1].to_parquet(path, index=False)


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no protocol": ("protocol.json", Path.unlink, "is missing"),
    "protocol cut off": ("protocol.json", lambda p: p.write_bytes(p.read_bytes()[:90]), "is damaged"),
    "protocol edited": ("protocol.json", lambda p: p.write_text(p.read_text().replace("20", "21")), "edited"),
    "records cut off": ("records.jsonl", lambda p: p.write_bytes(p.read_bytes()[:-90]), "is damaged"),
    "records binary": ("records.jsonl", lambda p: p.write_bytes(b"\xff\xfe\x00"), "is damaged"),
    "no object": ("records.jsonl", lambda p: p.write_text("3\n"), "is damaged"),
    "other seed": ("records.jsonl", rewrite(lambda lines: lines[0]["record"].update(seed=5)), "edited"),
    "no labels": ("records.jsonl", rewrite(lambda lines: lines[0]["record"].update(labels={})), "edited"),
    "other protocol": ("records.jsonl", rewrite(lambda lines: lines[0]["record"].update(protocol="x")), "damaged"),
    "other schema": ("records.jsonl", rewrite(lambda lines: lines[0]["record"].update(schema_version=99)), "schema 99"),
    "no examples": ("examples.parquet", Path.unlink, "is missing"),
    "empty examples": ("examples.parquet", lambda p: p.write_bytes(b""), "is damaged"),
    "a row too few": ("examples.parquet", shorten, "does not have the rows"),
    "rows of others": ("examples.parquet", swap, "does not have the rows of"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_with_the_name_of_the_file(tmp_path: Path, damage: str) -> None:
    name, spoil, says = DAMAGE[damage]
    pack(study(), tmp_path)
    spoil(tmp_path / name)
    with pytest.raises(SteerbenchError, match=f"{tmp_path / name} .*{says}"):
        Store(tmp_path).records()


def test_a_line_too_few_is_told(tmp_path: Path) -> None:
    pack(study(), tmp_path)
    rewrite(lambda lines: lines.pop())(tmp_path / "records.jsonl")
    with pytest.raises(SteerbenchError, match=r"does not have the rows that records\.jsonl names"):
        Store(tmp_path).records()


def test_flipped_bits_of_the_examples_are_found(tmp_path: Path) -> None:
    pack(study(), tmp_path)
    file = tmp_path / "examples.parquet"
    whole = file.read_bytes()
    found = 0
    for place in range(4, len(whole) - 8, len(whole) // 60):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            assert same(Store(tmp_path).records(), study())
        except SteerbenchError:
            found += 1
    assert found > 20


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SteerbenchError, match="holds something; choose a new folder"):
        pack(study(), tmp_path)
    with pytest.raises(SteerbenchError, match="holds something; choose a new folder"):
        pack(study(), tmp_path / "notes.txt")
    with pytest.raises(SteerbenchError, match="cannot write"):
        pack(study(), tmp_path / "notes.txt" / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_record_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SteerbenchError, match="is there twice"):
        pack([make(), make()], tmp_path / "packed")


def test_tables_that_do_not_fit_together_leave_nothing(tmp_path: Path) -> None:
    words, numbers = make("caa"), make("repe")
    words = replace(words, examples=words.examples.assign(reward="high"))
    with pytest.raises(SteerbenchError, match="pack them into separate folders"):
        pack([words, numbers], tmp_path / "packed")
    assert list(tmp_path.iterdir()) == []


def test_the_command_packs_and_the_table_stays(tmp_path: Path) -> None:
    for record in (make("unsteered"), make("caa")):
        Store(tmp_path / "runs").write(record)
    runs, packed = tmp_path / "runs", tmp_path / "packed"
    for command in (["pack", runs, packed], *(["leaderboard", f, "--csv", f"{f}.csv"] for f in (runs, packed))):
        done = CliRunner().invoke(app, [str(word) for word in command])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "runs.csv").read_bytes() == (tmp_path / "packed.csv").read_bytes()
    kept = (packed / "protocol.json").read_bytes()
    done = CliRunner().invoke(app, ["leaderboard", str(packed), "--csv", str(packed / "protocol.json")])
    assert done.exit_code == 2
    assert (tmp_path / "packed" / "protocol.json").read_bytes() == kept


def test_a_record_of_the_first_layout_loads() -> None:
    """One folder of two files, with the wins against the unsteered model among its columns."""
    (record,) = Store(FIRST_LAYOUT).records()
    assert record.method == "unsteered"
    assert len(record.examples) == record.protocol["n_examples"] * record.protocol["n_samples"]
    assert {"win_rate", "worse", "held_out_win_rate", "gold"} <= set(record.examples)


def test_a_seal_finds_an_edited_metric_in_a_packed_study(tmp_path: Path) -> None:
    records = [make("caa"), make("unsteered")]
    pack(records, tmp_path / "study")
    file = tmp_path / "study" / PACKED
    rewrite(lambda lines: lines[0]["record"]["metrics"].update(reward=9.0))(file)
    with pytest.raises(SteerbenchError, match=f"{records[0].folder_name}.*the seal does not hold"):
        Store(tmp_path).records()
