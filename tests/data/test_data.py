"""Loading: formats, damaged files, what is skipped, splits. On a task of three fields, invented here."""

import csv
import gzip
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas
import pytest

from steerbench.data.dialogue import user
from steerbench.data.splits import load_data
from steerbench.data.task import Example, Task, TaskData, text_field
from steerbench.errors import SteerbenchError

Row = dict[str, Any]


class Toy(Task):
    version = 1
    hub = "someone/toy"
    hub_revision = "0123456789abcdef0123456789abcdef01234567"
    group_word = "topic"

    def parse(self, row: Mapping[str, Any]) -> Example:
        topic, question, reply = (text_field(row, name) for name in ("topic", "question", "reply"))
        return Example(f"{topic}/{question}/{reply}", topic, user(question), reply, "no")


class OnePerTopic(Toy):
    one_per_group = True


def row(topic: object, question: object = None, reply: str = "yes") -> Row:
    return {"topic": f"t{topic}", "question": f"q{topic if question is None else question}", "reply": reply}


def rows(*topics: int) -> list[Row]:
    return [row(topic) for topic in topics]


def lines(records: list[Row]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write(path: Path, records: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lines(records))
    return path


def ids(data: TaskData) -> dict[str, list[str]]:
    return {name: [example.id for example in getattr(data, name)] for name in ("train", "validation", "test")}


def topics(data: TaskData) -> dict[str, set[str]]:
    return {name: {example.group for example in getattr(data, name)} for name in ("train", "validation", "test")}


def message(path: Path | None, task: Task | None = None) -> str:
    with pytest.raises(SteerbenchError) as caught:
        load_data(task or Toy(), path)
    return str(caught.value)


# Formats


def as_array(path: Path, records: list[Row]) -> None:
    path.write_text(json.dumps(records, indent=1))


def as_array_with_bom(path: Path, records: list[Row]) -> None:
    path.write_text(json.dumps(records), encoding="utf-8-sig")


def as_lines_with_bom_and_gaps(path: Path, records: list[Row]) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + lines(records).replace(b"\n", b"\r\n\n"))


def as_utf16_lines(path: Path, records: list[Row]) -> None:
    """As Windows' PowerShell writes what is redirected into a file."""
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\r\n" for r in records), "utf-16", newline="")


def as_gzip_utf16_array(path: Path, records: list[Row]) -> None:
    path.write_bytes(gzip.compress(json.dumps(records, ensure_ascii=False).encode("utf-16-be")))


def as_gzip(path: Path, records: list[Row]) -> None:
    path.write_bytes(gzip.compress(lines(records)))


def as_gzip_array(path: Path, records: list[Row]) -> None:
    path.write_bytes(gzip.compress(b" \n" + json.dumps(records).encode()))


def as_csv(path: Path, records: list[Row]) -> None:
    pandas.DataFrame(records).to_csv(path, index=False)


def as_csv_of_a_spreadsheet(path: Path, records: list[Row]) -> None:
    pandas.DataFrame(records).to_csv(
        path, index=False, encoding="utf-8-sig", lineterminator="\r\n", quoting=csv.QUOTE_ALL
    )


def as_parquet(path: Path, records: list[Row]) -> None:
    pandas.DataFrame(records).to_parquet(path)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("a.json", write),
        ("a.json", as_array),
        ("a.jsonl", as_array),
        ("a.json", as_array_with_bom),
        ("a.JSONL", as_lines_with_bom_and_gaps),
        ("a.jsonl", as_utf16_lines),
        ("a.json.gz", as_gzip_utf16_array),
        ("a.jsonl.gz", as_gzip),
        ("a.json.gz", as_gzip),
        ("a.json.gz", as_gzip_array),
        ("a.parquet", as_parquet),
        ("a.csv", as_csv),
        ("a.CSV", as_csv_of_a_spreadsheet),
    ],
)
def test_every_format_gives_the_same_examples(tmp_path: Path, name: str, save: Callable[..., object]) -> None:
    records = [row(topic, question) for topic in range(12) for question in ("ä", f"\U0001f35e {topic}\n")]
    expected = load_data(Toy(), write(tmp_path / "plain.jsonl", records))
    save(tmp_path / name, records)
    data = load_data(Toy(), tmp_path / name)
    assert (data.train, data.validation, data.test) == (expected.train, expected.validation, expected.test)
    assert data.skipped == {"duplicate prompt": 11}


def test_texts_keep_their_line_ends(tmp_path: Path) -> None:
    """Lines of a file may end in CRLF; what stands in a text is the author's."""
    content = lines([row(topic, f"a\r\nb\rc\n{topic}") for topic in range(3)])
    (tmp_path / "a.jsonl").write_bytes(content.replace(b"\n", b"\r\n"))
    data = load_data(Toy(), tmp_path / "a.jsonl")
    texts = {e.prompt[-1].text for e in (*data.train, *data.validation, *data.test)}
    assert texts == {f"qa\r\nb\rc\n{topic}" for topic in range(3)}


def test_a_folder_without_split_names_is_one_pool(tmp_path: Path) -> None:
    expected = load_data(Toy(), write(tmp_path / "all.jsonl", rows(*range(30))))
    write(tmp_path / "d" / "one.jsonl", rows(*range(10)))
    as_parquet(tmp_path / "d" / "two.parquet", rows(*range(10, 20)))
    write(tmp_path / "d" / "deep" / "three.json", rows(*range(20, 30)))
    (tmp_path / "d" / "README.md").write_text("words")
    write(tmp_path / "d" / ".cache" / "four.jsonl", rows(77))
    assert ids(load_data(Toy(), tmp_path / "d")) == ids(expected)


def test_cells_of_a_csv_are_text_and_lines_may_be_short(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('topic,question,reply\n1,"a, b\nc",2.50\n2,q\n\n3,r,"""yes"""\n4,s,x,y\n5,t,\n')
    data = load_data(Toy(), path)
    assert {
        (e.group, e.prompt[0].text, e.chosen) for split in (data.train, data.validation, data.test) for e in split
    } == {
        ("1", "a, b\nc", "2.50"),
        ("3", "r", '"yes"'),
        ("4", "s", "x"),
        ("5", "t", ""),
    }
    assert data.skipped == {"missing field reply": 1}


# Mistakes of the user


@pytest.mark.parametrize("text", [b'topic,question,reply\n1,"open,a', b"topic,question,reply\n1,\xff,a\n"])
def test_a_damaged_csv_is_told(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(text)
    assert "it is damaged or cut off" in message(tmp_path / "a.csv")
    assert message(tmp_path / "a.csv").endswith("Save it as CSV in UTF-8 again.")


def test_other_columns_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("subject;question;reply\n1;2;3\n")
    assert message(tmp_path / "a.csv").endswith(
        "1 x missing field topic. The last one has the fields subject;question;reply. "
        "Give records in the schema of someone/toy."
    )


def test_a_task_without_a_data_set_asks_for_a_file(tmp_path: Path) -> None:
    class Own(Toy):
        hub = ""

    assert message(None, Own()).startswith("task Own names no data set of the Hub; give its file with --data PATH (")
    (tmp_path / "a.jsonl").write_text("{}")
    assert message(tmp_path / "a.jsonl", Own()).endswith("Give records as Own.parse reads them.")


@pytest.mark.parametrize("name", ["absent.jsonl", "x" * 300, "a\0b"])
def test_missing_path(tmp_path: Path, name: str) -> None:
    assert "--data" in message(tmp_path / name)


@pytest.mark.parametrize("name", ["a.xlsx", "a.gz", "a", "jsonl"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    text = message(write(tmp_path / name, rows(1, 2, 3)))
    assert name in text
    assert ".jsonl.gz" in text


def test_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "folder.jsonl").mkdir()
    assert "no data file" in message(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jsonl.gz", gzip.compress(lines(rows(*range(50))), mtime=0)[:-20]),
        ("plain.jsonl.gz", lines(rows(1, 2, 3))),
        ("bad.jsonl.gz", gzip.compress(b"x" * 500, mtime=0)[:12] + b"\xff\x00\xff\x00" * 9),
        ("bad.parquet", b"PAR1 but no more of it PAR1"),
        ("half.jsonl", lines(rows(1, 2, 3)).decode().encode("utf-16")[:-1]),
        ("empty.parquet", b""),
        ("lines.parquet", lines(rows(1, 2, 3))),
    ],
    ids=["cut gzip", "no gzip", "corrupt gzip", "corrupt parquet", "cut UTF-16", "empty parquet", "no parquet"],
)
def test_damaged_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    text = message(tmp_path / name)
    assert name in text
    assert "damaged" in text


def test_parquet_damaged_inside(tmp_path: Path) -> None:
    as_parquet(tmp_path / "a.parquet", [row(i, f"{i * 7919:x}" * 50) for i in range(500)])
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[40:4000] = bytes(3960)
    (tmp_path / "a.parquet").write_bytes(content)
    assert "damaged" in message(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("content", "counts"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (b"[]", "it is empty"),
        (b"{}\n{", "1 x broken line, 1 x missing field topic"),
        (b"[1, [], null]", "3 x not an object"),
        (b'[\n{"topic": 1},\n', "2 x broken line"),
        (b'"\xff\xfe"\n\x00\x01\n' + b"[" * 100_000 + b"\n" + b"9" * 5000, "4 x broken line"),
    ],
    ids=range(7),
)
def test_nothing_usable(tmp_path: Path, content: bytes, counts: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    text = message(tmp_path / "a.jsonl")
    assert text.startswith(f"no usable record in {tmp_path / 'a.jsonl'}: {counts}.")
    assert "someone/toy" in text


def test_one_file_with_nothing_usable_among_good_ones(tmp_path: Path) -> None:
    write(tmp_path / "good.jsonl", rows(*range(9)))
    write(tmp_path / "bad.jsonl", [{"other": 1}])
    assert "bad.jsonl: 1 x missing field topic" in message(tmp_path)


def test_a_name_that_fits_two_splits(tmp_path: Path) -> None:
    write(tmp_path / "train_test.jsonl", rows(*range(9)))
    assert "test, train" in message(tmp_path)


@pytest.mark.parametrize(("n", "enough"), [(1, False), (2, False), (3, True), (4, True)])
def test_a_pool_needs_three_groups(tmp_path: Path, n: int, enough: bool) -> None:
    path = write(tmp_path / "a.jsonl", [row(topic, f"{topic} {i}") for topic in range(n) for i in range(5)])
    if enough:
        assert all(topics(load_data(Toy(), path)).values())
    else:
        assert f"3 that differ in their topic, and there are {n}" in message(path)


# What is skipped


def test_bad_rows_are_counted_and_the_others_used(tmp_path: Path) -> None:
    good = rows(*range(20))
    bad = [{"topic": "t"}, row(1) | {"reply": 3}, row(1) | {"reply": math.nan}, row(1, "\ud800"), *good[:2]]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"null\n" + lines(bad) + b"\xff\xfe\x00 not UTF-8\n" + lines(good) + lines(good)[:15])
    data = load_data(Toy(), path)
    assert sum(map(len, ids(data).values())) == 20
    assert data.skipped == {
        "broken line": 2,
        "broken text": 1,
        "duplicate prompt": 2,
        "missing field question": 1,
        "missing field reply": 1,
        "not an object": 1,
        "wrong type": 1,
    }


def test_nothing_skipped(tmp_path: Path) -> None:
    assert load_data(Toy(), write(tmp_path / "a.jsonl", rows(1, 2, 3))).skipped == {}


def test_one_per_group_keeps_one_and_the_choice_does_not_depend_on_the_order(tmp_path: Path) -> None:
    records = [row(topic, f"{topic} {i}") for topic in range(9) for i in range(4)]
    one = load_data(OnePerTopic(), write(tmp_path / "a.jsonl", records))
    two = load_data(OnePerTopic(), write(tmp_path / "b.jsonl", records[::-1]))
    assert ids(one) == ids(two)
    assert sum(map(len, ids(one).values())) == 9
    assert one.skipped == {"duplicate topic": 27}


def test_one_prompt_in_two_groups_stands_once(tmp_path: Path) -> None:
    records = [*rows(*range(8)), row(100, 5), row(200, 5)]
    data = load_data(OnePerTopic(), write(tmp_path / "a.jsonl", records))
    prompts = [example.prompt for split in (data.train, data.validation, data.test) for example in split]
    assert len(prompts) == len(set(prompts)) == 8
    assert data.skipped == {"duplicate prompt": 2}


# Splits


def test_a_pool_is_cut_by_group(tmp_path: Path) -> None:
    records = [row(topic, f"{topic} {i}") for topic in range(200) for i in range(3)]
    found = topics(load_data(Toy(), write(tmp_path / "a.jsonl", records)))
    assert {name: len(groups) for name, groups in found.items()} == {"train": 120, "validation": 20, "test": 60}
    assert len(set.union(*found.values())) == 200


def test_rows_in_another_order_give_the_same_splits_in_the_same_order(tmp_path: Path) -> None:
    records = [row(topic, f"{topic} {i}", reply) for topic in range(30) for i in range(3) for reply in "ab"]
    one = load_data(Toy(), write(tmp_path / "a.jsonl", records))
    two = load_data(Toy(), write(tmp_path / "b.jsonl", sorted(records, key=lambda r: str(r)[::-1])))
    assert ids(one) == ids(two)
    assert one.skipped == two.skipped == {"duplicate prompt": 90}


def test_the_order_is_not_that_of_the_file(tmp_path: Path) -> None:
    data = load_data(Toy(), write(tmp_path / "a.jsonl", rows(*range(100, 900))))
    order = ids(data)["test"]
    assert order != sorted(order)
    assert min(order) < "t300"  # nor is the split one piece of the file
    assert max(order) > "t700"


def test_splits_of_the_data_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "base" / "train.jsonl", rows(1, 2))
    write(tmp_path / "online" / "train-00001-of-00002.jsonl", rows(3))
    write(tmp_path / "dev.jsonl", rows(4))
    write(tmp_path / "toy_test.jsonl", rows(5))
    expected = {"train": {"t1", "t2", "t3"}, "validation": {"t4"}, "test": {"t5"}}
    assert topics(load_data(Toy(), tmp_path)) == expected


@pytest.mark.parametrize("name", ["validation", "val", "dev", "valid", "Validation", "my.val", "val/part-0"])
def test_names_of_the_validation_split(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train.jsonl", rows(*range(10)))
    write(tmp_path / "test.jsonl", rows(10))
    write(tmp_path / f"{name}.jsonl", rows(11))
    assert topics(load_data(Toy(), tmp_path))["validation"] == {"t11"}


@pytest.mark.parametrize("name", ["latest", "devil", "attest", "trainer", "evaluation"])
def test_names_of_no_split(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train.jsonl", rows(*range(10)))
    write(tmp_path / f"{name}.jsonl", rows(11, 12))
    data = load_data(Toy(), tmp_path)
    assert set.union(*topics(data).values()) == {f"t{i}" for i in range(10)}
    assert data.skipped == {"file without a split name": 1}


def test_validation_is_carved_out_of_train(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [row(topic, f"{topic} {i}") for topic in range(50) for i in range(2)])
    write(tmp_path / "test.jsonl", rows(99))
    found = topics(load_data(Toy(), tmp_path))
    assert {name: len(groups) for name, groups in found.items()} == {"train": 45, "validation": 5, "test": 1}
    assert not found["train"] & found["validation"]


def test_test_is_carved_out_of_train(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", rows(*range(50)))
    write(tmp_path / "val.jsonl", rows(98, 99))
    found = topics(load_data(Toy(), tmp_path))
    assert {name: len(groups) for name, groups in found.items()} == {"train": 35, "validation": 2, "test": 15}
    assert found["validation"] == {"t98", "t99"}


@pytest.mark.parametrize("name", ["train", "test", "validation", "all"])
def test_a_single_split_is_a_pool_whatever_its_name(tmp_path: Path, name: str) -> None:
    expected = load_data(Toy(), write(tmp_path / "plain.jsonl", rows(*range(40))))
    path = write(tmp_path / "d" / f"{name}.jsonl", rows(*range(40)))
    assert ids(load_data(Toy(), path)) == ids(load_data(Toy(), path.parent)) == ids(expected)


def test_validation_and_test_without_train_are_a_pool(tmp_path: Path) -> None:
    expected = load_data(Toy(), write(tmp_path / "plain.jsonl", rows(*range(40))))
    write(tmp_path / "d" / "val.jsonl", rows(*range(20)))
    write(tmp_path / "d" / "test.jsonl", rows(*range(20, 40)))
    assert ids(load_data(Toy(), tmp_path / "d")) == ids(expected)


def test_what_stands_in_two_splits_stays_in_test_then_validation(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [*rows(1, 2), row(3, "other"), row(300, 3)])
    write(tmp_path / "val.jsonl", rows(2, 3))
    write(tmp_path / "test.jsonl", rows(3))
    data = load_data(Toy(), tmp_path)
    assert topics(data) == {"train": {"t1"}, "validation": {"t2"}, "test": {"t3"}}
    assert data.skipped == {"topic in another split": 3, "duplicate prompt": 1}


def test_a_split_of_which_nothing_is_left(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", rows(1, 2))
    write(tmp_path / "val.jsonl", rows(3))
    write(tmp_path / "test.jsonl", rows(1, 2, 3))
    assert "no usable record in split 'validation': 1 x topic in another split" in message(tmp_path)


# Revision


def test_revision_of_files(tmp_path: Path) -> None:
    def revision(folder: str, **files: list[Row]) -> str:
        for name, records in files.items():
            write(tmp_path / folder / f"{name}.jsonl", records)
        return load_data(Toy(), tmp_path / folder).revision

    one = revision("one", train=rows(1, 2, 3), test=rows(4))
    assert one.startswith("sha256:")
    assert len(one) == 7 + 64
    assert one == revision("two", test=rows(4), train=rows(1, 2, 3))
    assert one != revision("three", train=rows(1, 2, 3), test=rows(5))
    assert one != revision("four", **{"train": rows(1, 2, 3), "a-test": rows(4)})


def test_revision_of_a_file_is_its_checksum(tmp_path: Path) -> None:
    import hashlib

    one, two = write(tmp_path / "a.jsonl", rows(1, 2, 3)), write(tmp_path / "d" / "b.json", rows(1, 2, 3))
    expected = f"sha256:{hashlib.sha256(one.read_bytes()).hexdigest()}"
    assert load_data(Toy(), one).revision == load_data(Toy(), two).revision == expected


# The Hub


def test_hub_is_asked_for_the_pinned_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, *, revision: str) -> dict[str, list[Row]]:
        asked.append((name, revision))
        return {"train": rows(*range(20)), "validation": rows(97, 98), "test": rows(99)}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = load_data(Toy())
    assert asked == [("someone/toy", "0123456789abcdef0123456789abcdef01234567")]
    assert data.revision == "someone/toy@0123456789abcdef0123456789abcdef01234567"
    for name, numbers in (("train", range(20)), ("validation", (97, 98)), ("test", (99,))):
        write(tmp_path / f"{name}.jsonl", rows(*numbers))
    assert ids(data) == ids(load_data(Toy(), tmp_path))


def test_a_real_dataset_object_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list([*rows(1, 2, 3), row(4) | {"reply": None}])})
    monkeypatch.setattr("datasets.load_dataset", lambda name, revision: splits)
    data = load_data(Toy())
    assert set.union(*topics(data).values()) == {"t1", "t2", "t3"}
    assert data.skipped == {"missing field reply": 1}


def test_hub_split_with_nothing_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda name, revision: {"train": rows(1), "test": []})
    assert "someone/toy (test): it is empty" in message(None)


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), ValueError("no cache"), RuntimeError()])
def test_hub_failure_says_how_to_use_files(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str, revision: str) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", fail)
    text = message(None)
    assert "someone/toy at revision 0123456789abcdef0123456789abcdef01234567" in text
    assert "--data PATH" in text
    assert (str(error).partition("\n")[0] or "RuntimeError") in text


def test_importing_imports_no_library() -> None:
    import subprocess
    import sys

    code = "import sys, steerbench.data; sys.exit(bool({'torch', 'datasets', 'pandas', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_task_that_trips_over_a_row_is_told_how_to_refuse_it(tmp_path: Path) -> None:
    class Careless(Toy):
        def parse(self, row: Mapping[str, Any]) -> Example:
            return Example(row["id"], row["id"], user("q"), "a", "b")

    path = write(tmp_path / "toy.jsonl", rows(1, 2, 3))
    with pytest.raises(SteerbenchError, match=r"task Careless cannot read a row .*KeyError: 'id'.*must raise Unusable"):
        load_data(Careless(), path)
