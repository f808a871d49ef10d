"""The built-in tasks: how one row becomes an example, and what the real records hold."""

import gzip
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from steerbench import load, names
from steerbench.data.dialogue import Turn
from steerbench.data.splits import load_data
from steerbench.data.task import Example, Task, TaskData, Unusable
from steerbench.errors import SteerbenchError
from steerbench.plugins.spec import build_task, parse_tasks

Row = dict[str, Any]
HH_FILE, SHP_FILE = "hh_rlhf/harmless-base-test.jsonl.gz", "shp/test-1000.jsonl.gz"


def task(name: str) -> Task:
    return load("tasks", name)()


def real(name: str) -> Path:
    assets = os.environ.get("STEERBENCH_ASSETS")
    if not assets or not (path := Path(assets) / "data" / name).exists():
        pytest.skip("STEERBENCH_ASSETS does not name the folder with the real records")
    return path


def rows_of(path: Path) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def everything(data: TaskData) -> list[Example]:
    return [*data.train, *data.validation, *data.test]


def reason(name: str, row: Mapping[str, Any]) -> str:
    with pytest.raises(Unusable) as caught:
        task(name).parse(row)
    return str(caught.value)


@pytest.mark.parametrize("name", ["hh_rlhf", "shp"])
def test_tasks_are_found_and_pinned(name: str) -> None:
    assert name in names("tasks")
    assert task(name).version >= 1
    assert len(task(name).hub_revision) == 40
    assert int(task(name).hub_revision, 16)


@pytest.mark.parametrize("name", ["hh_rlhf", "shp"])
def test_the_row_in_the_docstring_is_usable(name: str) -> None:
    import inspect

    doc = inspect.getmodule(load("tasks", name)).__doc__ or ""
    row = json.loads(doc[doc.index("{") : doc.index("}") + 1])
    assert task(name).parse(row).prompt[-1].role == "user"


# HH-RLHF


def hh(prompt: str = "\n\nHuman: Hi  THERE\n\nAssistant: yes\n\nHuman: why", a: str = "good", b: str = "bad") -> Row:
    return {"chosen": f"{prompt}\n\nAssistant: {a}", "rejected": f"{prompt}\n\nAssistant: {b}"}


def test_hh_splits_at_the_last_assistant_turn() -> None:
    example = task("hh_rlhf").parse(hh())
    assert example.prompt == (Turn("user", "Hi  THERE"), Turn("assistant", "yes"), Turn("user", "why"))
    assert (example.chosen, example.rejected) == ("good", "bad")
    assert example.group == "hi there"


def test_hh_id_names_the_whole_record() -> None:
    parse = task("hh_rlhf").parse
    ids = {parse(row).id for row in (hh(), hh(a="other"), hh(b="other"), hh(a="bad", b="good"), hh("\n\nHuman: x"))}
    assert len(ids) == 5
    assert parse(hh() | {"extra": 1}).id in ids


def test_hh_joins_doubled_turns_of_the_prompt() -> None:
    example = task("hh_rlhf").parse(hh("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d"))
    assert [turn.text for turn in example.prompt] == ["a", "b\n\nc", "d"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "missing field chosen"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b"}, "missing field rejected"),
        (hh() | {"rejected": None}, "missing field rejected"),
        (hh() | {"rejected": math.nan}, "missing field rejected"),
        (hh() | {"rejected": 3}, "wrong type"),
        (hh() | {"chosen": ["a"]}, "wrong type"),
        (hh(a="half \ud83d"), "broken text"),
        (hh() | {"chosen": "hello"}, "not a dialogue"),
        (hh() | {"chosen": ""}, "not a dialogue"),
        (hh("\n\nHuman: a", a="b\n\nHuman: c"), "does not end in a reply"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, "does not end in a reply"),
        (hh("\n\nHuman: a\n\nAssistant: b"), "reply follows no user turn"),
        (hh() | {"rejected": "\n\nHuman: other\n\nAssistant: bad"}, "diverges before the last turn"),
        (hh("\n\nHuman: a", a="b\n\nAssistant: c"), "diverges before the last turn"),
        (hh("\n\nHuman: \n\nAssistant: b\n\nHuman: c"), "empty turn"),
        (hh("\n\nHuman: "), "empty turn"),
        (hh(a=""), "empty reply"),
        (hh(b=" \n\t"), "empty reply"),
        (hh(a="same", b=" same "), "equal replies"),
    ],
)
def test_hh_reasons(row: Row, why: str) -> None:
    assert reason("hh_rlhf", row) == why


def naive_hh(row: Row) -> tuple[str, str, str] | None:
    """Prompt, chosen and rejected text; None for what cannot be used. Knows no turns, only the last marker."""
    prompt, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
    other, _, rejected = row["rejected"].rpartition("\n\nAssistant:")
    if prompt != other or not chosen.strip() or not rejected.strip():
        return None
    return prompt, chosen.strip(), rejected.strip()


def squeezed(text: str) -> str:
    return "".join(text.replace("\n\nHuman:", "").replace("\n\nAssistant:", "").split())


def test_hh_counts_on_the_real_file() -> None:
    path = real(HH_FILE)
    rows, data = rows_of(path), load_data(task("hh_rlhf"), path)
    pairs = [pair for row in rows if (pair := naive_hh(row))]
    assert (len(rows), len(pairs), len({prompt for prompt, _, _ in pairs})) == (2312, 2303, 2301)
    assert data.skipped == {"diverges before the last turn": 5, "empty reply": 4, "duplicate prompt": 2}
    assert len(everything(data)) == 2301


def test_hh_text_on_the_real_file() -> None:
    path = real(HH_FILE)
    pairs = [pair for row in rows_of(path) if (pair := naive_hh(row))]
    expected = {(squeezed(prompt), chosen, rejected) for prompt, chosen, rejected in pairs}
    examples = everything(load_data(task("hh_rlhf"), path))
    found = {(squeezed("".join(t.text for t in e.prompt)), e.chosen, e.rejected) for e in examples}
    assert found <= expected
    assert len(expected - found) == 2  # the duplicates
    for example in examples:
        assert [t.role for t in example.prompt] == [("user", "assistant")[i % 2] for i in range(len(example.prompt))]
        assert example.prompt[-1].role == "user"


def criterion(name: str) -> Task:
    made: Any = load("tasks", "hh_rlhf")
    found: Task = made(criterion=name)
    return found


def test_a_criterion_reads_its_files_alone(tmp_path: Path) -> None:
    """As the data set is laid out on the Hub, and as files in one folder."""
    for file, asked in (
        ("helpful-base/train.jsonl", "bread"),
        ("helpful-online/train.jsonl", "rye"),
        ("harmless-base/train.jsonl", "locks? bolts"),
        ("helpful-base-test.jsonl", "cheese"),
        ("harmless-base-test.jsonl", "poison? darts? acid"),
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        rows = [hh(f"\n\nHuman: {each}?") for each in asked.split("? ")]
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def asked_in(task: Task, folder: Path = tmp_path) -> set[str]:
        return {example.prompt[0].text for example in everything(load_data(task, folder))}

    assert asked_in(criterion("helpful")) == {"bread?", "rye?", "cheese?"}
    assert asked_in(criterion("harmless")) == {"locks?", "bolts?", "poison?", "darts?", "acid?"}
    assert asked_in(criterion("both")) == {
        *("bread?", "rye?", "cheese?"),
        *("locks?", "bolts?", "poison?", "darts?", "acid?"),
    }
    assert asked_in(criterion("harmless"), tmp_path / "harmless-base-test.jsonl") == {"poison?", "darts?", "acid?"}
    with pytest.raises(SteerbenchError, match=r"no file of the task HHRLHF:criterion=helpful, only harmless-base-test"):
        load_data(criterion("helpful"), tmp_path / "harmless-base-test.jsonl")


def test_a_criterion_asks_the_hub_for_its_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def load_dataset(name: str, *, revision: str, data_dir: str | None = None) -> dict[str, list[Row]]:
        asked.append(data_dir)
        return {"train": [hh(f"\n\nHuman: {data_dir}?")]}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = load_data(criterion("helpful"))
    assert asked == ["helpful-base", "helpful-online", "helpful-rejection-sampled"]
    assert {example.prompt[0].text for example in everything(data)} == {f"{folder}?" for folder in asked}


def test_criteria_of_the_real_files_add_up() -> None:
    folder = real("hh_rlhf")
    counts = {name: len(everything(load_data(criterion(name), folder))) for name in ("both", "helpful", "harmless")}
    assert counts["harmless"] == 2301
    assert counts["helpful"] > 5000
    assert 0 <= counts["helpful"] + counts["harmless"] - counts["both"] < 20, "some prompts stand in both"


# SHP


def shp(**fields: Any) -> Row:
    row = {"post_id": "p1", "history": "How?", "c_root_id_A": "ca", "c_root_id_B": "cb", "human_ref_A": "like so"}
    return row | {"human_ref_B": "no idea", "labels": 1, "score_A": 5, "score_B": 2} | fields


def without(name: str) -> Row:
    return {key: value for key, value in shp().items() if key != name}


def test_shp_is_one_user_turn() -> None:
    example = task("shp").parse(shp())
    assert example == Example("p1-ca-cb", "p1", (Turn("user", "How?"),), "like so", "no idea")


def test_shp_keeps_pairs_of_a_large_enough_ratio() -> None:
    (part,) = parse_tasks("shp:min_ratio=2.5")
    strict = build_task(part)
    assert strict.parse(shp()) == task("shp").parse(shp())
    assert strict.parse(shp(score_A=5, score_B=0)).chosen == "like so"
    for label, a, b in ((1, 4, 2), (0, 2, 4)):
        assert task("shp").parse(shp(labels=label, score_A=a, score_B=b))
        with pytest.raises(Unusable, match="score ratio too low"):
            strict.parse(shp(labels=label, score_A=a, score_B=b))


def test_shp_refuses_a_ratio_below_one() -> None:
    with pytest.raises(SteerbenchError, match=r"shp:min_ratio must be a finite number of 1 or more, not '0\.5'"):
        build_task(parse_tasks("shp:min_ratio=0.5")[0])


@pytest.mark.parametrize("label", [0, 0.0, False, "0", "0.0"])
def test_shp_label_zero_prefers_b(label: object) -> None:
    example = task("shp").parse(shp(labels=label, score_A=2, score_B=5))
    assert (example.chosen, example.rejected) == ("no idea", "like so")


@pytest.mark.parametrize("label", [1, 1.0, True, "1"])
def test_shp_label_one_prefers_a(label: object) -> None:
    assert task("shp").parse(shp(labels=label, score_A="5", score_B=2.0)).chosen == "like so"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        *((without(name), f"missing field {name}") for name in shp()),
        *((shp(**{name: None}), f"missing field {name}") for name in shp()),
        *((shp(**{name: math.nan}), f"missing field {name}") for name in shp()),
        *((shp(**{name: ["x"]}), "wrong type") for name in shp()),
        (shp(post_id=" "), "missing field post_id"),
        (shp(history=7), "wrong type"),
        (shp(labels="A"), "wrong type"),
        (shp(score_A=10**400), "wrong type"),
        (shp(labels=2), "label is neither 0 nor 1"),
        (shp(labels=0), "label disagrees with scores"),
        (shp(score_A=2), "label disagrees with scores"),
        (shp(labels=0, score_A=2), "label disagrees with scores"),
        (shp(history=" \n"), "empty post"),
        (shp(human_ref_A=""), "empty reply"),
        (shp(human_ref_B=" "), "empty reply"),
        (shp(human_ref_B="like so"), "equal replies"),
    ],
)
def test_shp_reasons(row: Row, why: str) -> None:
    assert reason("shp", row) == why


def test_shp_on_the_real_file() -> None:
    path = real(SHP_FILE)
    data = load_data(task("shp"), path)
    rows = {row["post_id"]: row for row in rows_of(path)}
    assert (len(data.train), len(data.validation), len(data.test), data.skipped) == (600, 100, 300, {})
    assert {example.group for example in everything(data)} == set(rows)
    for example in everything(data):
        row = rows[example.group]
        a, b = row["human_ref_A"].strip(), row["human_ref_B"].strip()
        assert (example.chosen, example.rejected) == ((a, b) if row["score_A"] > row["score_B"] else (b, a))
        assert example.prompt == (Turn("user", row["history"].strip()),)


# Both


@pytest.mark.parametrize(("name", "file"), [("hh_rlhf", HH_FILE), ("shp", SHP_FILE)])
def test_real_splits_are_disjoint_and_do_not_depend_on_the_order(name: str, file: str, tmp_path: Path) -> None:
    import random

    lines = gzip.decompress(real(file).read_bytes()).splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    (tmp_path / "shuffled.jsonl").write_bytes(b"".join(lines))
    first, second = load_data(task(name), real(file)), load_data(task(name), tmp_path / "shuffled.jsonl")
    assert (first.train, first.validation, first.test) == (second.train, second.validation, second.test)
    assert first.revision != second.revision
    splits = (first.train, first.validation, first.test)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not {e.group for e in splits[i]} & {e.group for e in splits[j]}
        assert not {e.prompt for e in splits[i]} & {e.prompt for e in splits[j]}
    assert len({e.id for e in everything(first)}) == len(everything(first))
