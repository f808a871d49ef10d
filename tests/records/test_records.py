"""Records are whole or absent, keyed by content, and never overwritten."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from made_records import make
from typer.testing import Result

from steerbench import SteerbenchError, Store
from steerbench.records.packing import pack
from steerbench.records.record import identity
from steerbench.records.seal import seal, seal_of
from steerbench.records.store import read


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    record = make()
    folder = Store(tmp_path).write(record)
    again = read(folder / "record.json")
    assert again == record
    pd.testing.assert_frame_equal(again.examples, record.examples)
    assert sorted(p.name for p in tmp_path.iterdir()) == [folder.name]
    assert Store(str(tmp_path)).records() == [record]


def test_a_record_is_found_by_its_content_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = make()
    store.write(record)
    found = store.find(identity(record.protocol, record.parts, record.seed, record.steerbench))
    assert found == record
    changed_source = [{**record.parts[0], "source": "other"}]
    changed_value = [{**record.parts[0], "hyperparameters": {"strength": 2.0}}]
    assert store.find(identity(record.protocol, changed_source, 0, "0.1.0")) is None
    assert store.find(identity(record.protocol, changed_value, 0, "0.1.0")) is None
    assert store.find(identity({**record.protocol, "model": "sha256:b"}, record.parts, 0, "0.1.0")) is None
    assert store.find(identity(record.protocol, record.parts, 1, "0.1.0")) is None
    assert store.find(identity(record.protocol, record.parts, 0, "0.1.1")) is None


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.write(make())
    before = (folder / "record.json").read_bytes()
    store.write(replace(make(), created="2027-01-01T00:00:00+00:00"))
    assert (folder / "record.json").read_bytes() == before
    assert len(store.records()) == 1


@pytest.mark.parametrize("text", ["../../x", "/etc/x", "..", ".partial-x", "a\\b", "a\0b\n", "ü" * 300, ""])
def test_a_label_never_leads_out_of_the_folder(tmp_path: Path, text: str) -> None:
    made = make(text)
    record, store = replace(made, labels=made.labels | {"task": text}), Store(tmp_path / "out")
    folder = store.write(record)
    assert (folder.parent, [*tmp_path.iterdir()]) == (store.folder, [store.folder])
    assert not folder.name.startswith(".")  # hidden ones are unfinished, and passed over
    assert [found.labels["task"] for found in store.records()] == [text]


def test_a_number_that_is_a_path_does_not_lead_out_either(tmp_path: Path) -> None:
    record: Any = replace(make("caa"), seed="0/../../../x")  # type: ignore[arg-type]
    assert Store(tmp_path / "out").write(record).parent == tmp_path / "out"


def test_what_a_killed_process_left_is_no_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.write(make())
    shutil.copytree(folder, tmp_path / ".partial-123")
    (tmp_path / ".partial-456").mkdir()
    assert len(store.records()) == 1


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path)
    store.write(make())
    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(
        SteerbenchError, match="No space left on device; free some space and run the same command again"
    ):
        store.write(make("static_prompt"))
    assert [r.method for r in store.records()] == ["caa"]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "record.json").write_text("{"), "damaged"),
        (lambda f: (f / "record.json").write_text("[]"), "damaged"),
        (lambda f: (f / "examples.parquet").unlink(), "damaged"),
        (lambda f: (f / "examples.parquet").write_bytes(b"x"), "damaged"),
        (lambda f: edit(f, schema_version=99), "schema 99"),
        (lambda f: edit(f, surprise=1), "damaged"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, damage: Any, says: str) -> None:
    folder = Store(tmp_path).write(make())
    damage(folder)
    with pytest.raises(SteerbenchError, match=says):
        Store(tmp_path).records()


def edit(folder: Path, **values: Any) -> None:
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**record, **values}))


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SteerbenchError, match="choose another folder with --out"):
        Store(tmp_path / "file" / "runs").prepare()


def test_a_missing_folder_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(SteerbenchError, match="steerbench run --out"):
        Store(tmp_path / "none").records()


def test_what_a_killed_process_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    for name, age in ((".partial-old", 7200), (".partial-new", 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text("{")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    kept = Store(tmp_path).write(make())
    Store(tmp_path).prepare()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".partial-new", kept.name]


def test_flipped_bits_of_a_table_are_found(tmp_path: Path) -> None:
    """Parquet by itself would read most of them as other texts and scores."""
    table = pd.DataFrame({"id": [f"p{i}" for i in range(200)], "reward": [i / 7 for i in range(200)]})
    record = replace(make(), examples=table.assign(group=table["id"], response="a reply of some words"))
    file = Store(tmp_path).write(record) / "examples.parquet"
    whole = file.read_bytes()
    for place in range(4, len(whole) - 8, len(whole) // 60):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            (found,) = Store(tmp_path).records()
        except SteerbenchError:
            continue
        pd.testing.assert_frame_equal(found.examples, record.examples)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"seed": "zero"}, {"protocol": {}}, {"labels": {}}, {"parts": []}, {"steerbench": "9.9.9"}]
)
def test_a_record_that_was_edited_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    edit(Store(tmp_path).write(make()), **change)
    with pytest.raises(SteerbenchError, match=r"is damaged \(it was edited, or its folder renamed\)"):
        Store(tmp_path).records()


def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    folder = Store(tmp_path).write(make())
    (folder / "record.json").unlink()
    (folder / "record.json").mkdir()
    with pytest.raises(SteerbenchError, match=r"cannot read .*record.json: Is a directory"):
        Store(tmp_path).records()
    (folder / "record.json").rmdir()
    (tmp_path / "file").touch()
    with pytest.raises(SteerbenchError, match="is no folder"):
        Store(tmp_path / "file").records()


def test_the_file_that_is_missing_is_named(tmp_path: Path) -> None:
    (Store(tmp_path).write(make()) / "examples.parquet").unlink()
    with pytest.raises(SteerbenchError, match=r"examples.parquet is missing; move its folder away"):
        Store(tmp_path).records()


def retouch(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    """Return what changes the examples of a record and writes them with the checksums of the new ones."""

    def rewrite(folder: Path) -> None:
        file = folder / "examples.parquet"
        change(pd.read_parquet(file)).to_parquet(file, index=False, write_page_checksum=True)

    return rewrite


EDITS: dict[str, Callable[[Path], None]] = {
    "a metric": lambda f: edit(f, metrics={"reward": 9.0}),
    "a metric's type": lambda f: edit(f, metrics="high"),
    "no seal": lambda f: edit(f, seal=None),
    "a schema without seals": lambda f: edit(f, schema_version=1),
    "a score": retouch(lambda t: t.assign(reward=t["reward"] + [1.0, *[0.0] * 19])),
    "a retyped column": retouch(lambda t: t.assign(reward=t["reward"].map(str))),
    "a dropped column": retouch(lambda t: t.drop(columns="reward")),
    "other rows": retouch(lambda t: t[::-1]),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_seal_finds_what_was_edited(tmp_path: Path, name: str) -> None:
    folder = Store(tmp_path).write(make())
    EDITS[name](folder)
    with pytest.raises(SteerbenchError, match=f"{folder.name}.*the seal does not hold"):
        Store(tmp_path).records()


def test_a_seal_is_of_values_not_of_bytes(tmp_path: Path) -> None:
    folder = Store(tmp_path).write(make())
    table = pd.read_parquet(folder / "examples.parquet")
    table.to_parquet(folder / "examples.parquet", index=False, compression="gzip")
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(dict(reversed(record.items()))))
    assert Store(tmp_path).records() == [make()]


WHOLE, NUMBERS, TEXTS = [1, 2, 3], [0.1, float("nan"), -0.0], ["a", None, "\u00e9\ud7ff"]


@pytest.mark.parametrize(
    "columns",
    [
        {"i": WHOLE, "f": NUMBERS, "t": TEXTS, "b": [True, False, True]},
        {"i": pd.array([1, None, 3], "Int64"), "f": pd.array([0.1, None, 2.0], "Float64")},
        {"b": pd.array([True, None, False], "boolean"), "o": pd.Series([True, None, False], dtype=object)},
        {"f": np.array(NUMBERS, "float32"), "i": np.array(WHOLE, "uint8")},
        {"c": pd.Categorical(["x", "y", "x"]), "n": [None, None, None], "i": WHOLE},
        {"s": pd.Series(["x", None, "y"], dtype=object)},
        {"f": [float("inf"), 1e-300, 5e-324], "t": pd.Series(["", "x", "\0"], dtype="string")},
    ],
)
@pytest.mark.parametrize("index", [True, False])
def test_a_seal_is_the_same_from_arrow(columns: dict[str, Any], index: bool) -> None:
    table = pa.Table.from_pandas(pd.DataFrame(columns), preserve_index=index)
    found = table.to_pandas()
    values = {"metrics": {"reward": 1.0}, "seal": "of another"}
    assert seal_of(values, table, found) == seal(values, found)
    renamed = table.rename_columns(["same"] * table.num_columns)
    if table.num_columns > 1 and index is False:
        twice = found.set_axis(["same"] * table.num_columns, axis=1)
        assert seal_of(values, renamed, twice) == seal(values, twice)


def test_an_older_record_needs_no_seal(tmp_path: Path) -> None:
    old = replace(make(), schema_version=1)
    assert "seal" not in json.loads((Store(tmp_path).write(old) / "record.json").read_text())
    assert Store(tmp_path).records() == [old]


def test_one_bad_record_does_not_keep_the_others_from_being_read(tmp_path: Path, cli: Callable[..., Result]) -> None:
    loose, packed = Store(tmp_path / "loose"), tmp_path / "packed"
    edit(loose.write(make()), metrics={"reward": 9.0})
    loose.write(make("unsteered"))
    pack([make("iti"), make("random_direction")], packed)
    file = packed / "records.jsonl"
    file.write_text(file.read_text().replace('"truncated": 0', '"truncated": 1', 1))
    done = cli("leaderboard", str(tmp_path), "--csv", str(tmp_path / "table.csv"))
    assert done.exit_code == 2
    assert done.stderr.count("left out: ") == 2
    assert make().folder_name in done.stderr
    assert make("iti").folder_name in done.stderr
    assert set(pd.read_csv(tmp_path / "table.csv")["method"]) == {"unsteered", "random_direction"}
    with pytest.raises(SteerbenchError, match="the seal does not hold"):
        Store(packed).records()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"metrics": {"reward": "high"}}, "its metrics.reward is of the wrong kind"),
        ({"metrics": 3}, "its metrics is no dict"),
        ({"labels": {"task": 1, "model": "m", "reward_model": "r", "held_out_reward": ""}}, "its labels.task is of"),
        ({"latency": None}, "its latency is no dict"),
        ({"environment": "cpu"}, "its environment is no dict"),
        ({"counts": [1]}, "its counts is no dict"),
        ({"created": 5}, "its created is no str"),
    ],
)
def test_values_of_the_wrong_kind_are_told_before_there_were_seals(tmp_path: Path, values: Any, says: str) -> None:
    file = Store(tmp_path).write(replace(make(), schema_version=1)) / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(SteerbenchError, match=rf"record\.json is damaged \({re.escape(says)}"):
        read(file)
