"""Files from strangers: whatever they hold, there are usable examples with counted skips, or one error with the fix."""

import gzip
import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st
from pyarrow import parquet
from safetensors.torch import save
from thorough import mostly_slow

from steerbench import SteerbenchError, Steering, load
from steerbench.data.splits import load_data
from steerbench.data.task import Task, TaskData
from steerbench.edits import Add, PlacedEdit, Site

FIXED = settings(
    max_examples=150,
    derandomize=True,  # the same examples in every run
    deadline=20_000,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
TASKS = ["hh_rlhf", "shp"]
SUFFIXES = [".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet"]


def hh_rlhf(n: int) -> dict[str, Any]:
    prompt = f"\n\nHuman: Question {n}?\n\nAssistant: First.\n\nHuman: And then?\n\nAssistant:"
    return {"chosen": f"{prompt} Good.", "rejected": f"{prompt} Bad."}


def shp(n: int) -> dict[str, Any]:
    texts = {"post_id": f"p{n}", "c_root_id_A": "a", "c_root_id_B": "b", "history": f"Question {n}?"}
    return texts | {"human_ref_A": "Good.", "human_ref_B": "Bad.", "labels": 1, "score_A": 9, "score_B": 3}


VALID: dict[str, Callable[[int], dict[str, Any]]] = {"hh_rlhf": hh_rlhf, "shp": shp}

# Values of a wrong type, and text that is a trial for what reads it

PIECES = st.sampled_from(
    ["\n\nHuman:", "\n\nAssistant:", "Human: ", "Assistant:", " ", "\0", "\ud800", "\ufeff", "\r\n", "ä", "\u2028", "x"]
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.lists(PIECES, max_size=9).map("".join),
    st.sampled_from(["", " ", "nan", "inf", "1", "x" * 1_000_000, "\n\nHuman: q\n\nAssistant: "]),
)
NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.sampled_from([10**400, math.nan, math.inf, -0.0]))
LEAVES = st.one_of(st.none(), NUMBERS, TEXTS)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3), max_leaves=5
)


@st.composite
def changed_rows(draw: st.DrawFn, task: str) -> list[Any]:
    """Return valid rows with some fields changed, missing or added, some rows doubled, and some that are no rows."""
    rows: list[Any] = [VALID[task](n) for n in range(draw(st.integers(0, 7)))]
    for row in rows:
        for name in draw(st.sets(st.sampled_from(sorted(row)), max_size=2)):
            if draw(st.booleans()):
                row[name] = draw(VALUES)
            else:
                del row[name]
    rows += draw(st.lists(VALUES, max_size=2))
    return draw(st.permutations(rows + rows[: draw(st.integers(0, 2))]))


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return bytes with a piece cut out, replaced or put in, or as they are."""
    start = draw(st.integers(0, len(content)))
    stop = draw(st.integers(start, min(len(content), start + 40)))
    kind = draw(st.sampled_from(["none", "end", "cut", "change"]))
    if kind == "none":
        return content
    if kind == "end":
        return content[:start]
    return content[:start] + (draw(st.binary(max_size=9)) if kind == "change" else b"") + content[stop:]


@st.composite
def json_files(draw: st.DrawFn, task: str) -> bytes:
    """Return JSON lines or an array of changed rows, with empty lines, other line ends, a BOM, or damage."""
    lines = [json.dumps(row).encode() for row in draw(changed_rows(task))]
    lines += draw(
        st.lists(st.sampled_from([b"", b" \t", b"{", b"[" * 9999, b"null", b"9" * 9999, b"\xff\0"]), max_size=2)
    )
    end = draw(st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
    whole = b"[" + b",".join(lines) + b"]" if draw(st.integers(0, 3)) == 0 else end.join(lines)
    return draw(damaged(draw(st.sampled_from([b"", b"\xef\xbb\xbf", b" \n"])) + whole))


NUMBER_TYPES = [
    pyarrow.int64(),
    pyarrow.date64(),
    pyarrow.timestamp("ns"),
    pyarrow.timestamp("s"),
    pyarrow.timestamp("us", "UTC"),
    pyarrow.timestamp("us", "Nowhere/Land"),
    pyarrow.duration("s"),
    pyarrow.time64("us"),
    pyarrow.float64(),
]
OTHER_TYPES = [pyarrow.bool_(), pyarrow.decimal128(9, 2), pyarrow.list_(pyarrow.int8()), pyarrow.binary()]


@st.composite
def columns(draw: st.DrawFn, values: list[Any]) -> pyarrow.Array:
    """Return values as a column, or a column of another type: empty, or with any numbers in it."""
    kind = draw(st.sampled_from(["own", "own", "number", "other", "bytes"]))
    if kind == "own":
        return pyarrow.array(values)
    if kind == "number":
        numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9)
        raw = pyarrow.array([draw(numbers) for _ in values], pyarrow.int64())
        return raw.view(draw(st.sampled_from(NUMBER_TYPES)))
    if kind == "other":
        return pyarrow.nulls(len(values), draw(st.sampled_from(OTHER_TYPES)))
    raw = pyarrow.array([draw(st.binary(max_size=9)) for _ in values], pyarrow.binary())
    return raw.view(pyarrow.string())  # nobody checks that it is UTF-8


@st.composite
def parquet_files(draw: st.DrawFn, task: str) -> bytes:
    """Return a Parquet file of valid rows with some columns of other types, missing or doubled, or damaged."""
    rows = [VALID[task](n) for n in range(draw(st.integers(0, 7)))]
    names = draw(st.permutations(sorted(VALID[task](0))))
    names = names[draw(st.integers(0, 2)) :] + names[: draw(st.integers(0, 1))]
    arrays = [draw(columns([row[name] for row in rows])) for name in names]
    file = pyarrow.BufferOutputStream()
    compression = draw(st.sampled_from(["none", "snappy", "gzip"]))
    try:
        parquet.write_table(pyarrow.Table.from_arrays(arrays, names), file, compression=compression)
    except pyarrow.ArrowException:  # a moment that the format cannot hold
        reject()
    return draw(damaged(file.getvalue().to_pybytes()))


@st.composite
def files(draw: st.DrawFn, task: str) -> tuple[str, bytes]:
    """Return the end of a file's name, and what is in it: not always what the name says."""
    suffix = draw(st.sampled_from(SUFFIXES))
    kind = draw(st.sampled_from(["json", "json", "parquet", "any"]))
    if kind == "any":
        content = draw(st.binary(max_size=200))
    elif kind == "parquet":
        content = draw(parquet_files(task))
    else:
        content = draw(json_files(task))
    if suffix.endswith(".gz"):
        content = draw(damaged(gzip.compress(content, 1, mtime=0)))
    return ".parquet" if kind == "parquet" and draw(st.booleans()) else suffix, content


def read(task: Task, path: Path) -> TaskData | None:
    """Load a file; None where it is refused."""
    with suppress(SteerbenchError):
        return load_data(task, path)
    return None


def check(data: TaskData) -> None:
    """Check that every example can be used, and that the splits are disjoint."""
    splits = [data.train, data.validation, data.test]
    for one in (e for split in splits for e in split):
        texts = [one.id, one.group, one.chosen, one.rejected, *(turn.text for turn in one.prompt)]
        assert all(text.encode().strip() for text in texts)
        assert one.chosen != one.rejected
        assert one.prompt[-1].role == "user"
    groups = [{e.group for e in split} for split in splits]
    assert all(groups)
    assert len(set.union(*groups)) == sum(map(len, groups))


SOME = pytest.mark.parametrize("n", mostly_slow([50, 300], lambda n: n == 50))


@SOME
@pytest.mark.parametrize("name", TASKS)
def test_any_file(name: str, n: int, tmp_path: Path) -> None:
    task: Task = load("tasks", name)()

    @settings(FIXED, max_examples=n)
    @given(files(name))
    def run(file: tuple[str, bytes]) -> None:
        path = tmp_path / f"data{file[0]}"
        path.write_bytes(file[1])
        if data := read(task, path):
            check(data)

    run()


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([-(2**42)] * 9, pyarrow.timestamp("s")),
        pyarrow.array([2**40] * 9, pyarrow.timestamp("s", "UTC")),
        pyarrow.array([0] * 9, pyarrow.timestamp("s", "Nowhere/Land")),
        pyarrow.array([2**31 - 1] * 9, pyarrow.int32()).view(pyarrow.date32()),
        pyarrow.array([b"\xff"] * 9, pyarrow.binary()).view(pyarrow.string()),
    ],
    ids=["before time", "after time", "nowhere", "no date", "no text"],
)
def test_a_column_that_python_cannot_hold(tmp_path: Path, column: pyarrow.Array) -> None:
    """Also one that the task does not read."""
    table = pyarrow.Table.from_pylist([shp(n) for n in range(9)]).append_column("created", column)
    parquet.write_table(table, tmp_path / "data.parquet")
    with pytest.raises(SteerbenchError, match=r"data\.parquet: it is damaged"):
        load_data(load("tasks", "shp")(), tmp_path / "data.parquet")


@pytest.mark.parametrize("change", [{"score_A": "nan"}, {"score_B": "nan"}, {"labels": 0, "score_A": "nan"}])
def test_a_score_that_is_no_number_decides_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    rows = [*map(shp, range(4)), shp(9) | change]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_data(load("tasks", "shp")(), tmp_path / "data.jsonl").skipped == {"label disagrees with scores": 1}


@SOME
@pytest.mark.parametrize("name", TASKS)
def test_every_line_is_used_or_counted(name: str, n: int, tmp_path: Path) -> None:
    """Beside eight good rows, which no other one can take away, anything may stand."""
    task: Task = load("tasks", name)()
    good = [json.dumps(VALID[name](i)).encode() for i in range(100, 108)]

    @settings(FIXED, max_examples=n)
    @given(changed_rows(name), st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line), max_size=3))
    def run(rows: list[Any], noise: list[bytes]) -> None:
        lines = [b"{}", *(json.dumps(row).encode() for row in rows), *noise, *good]
        path = tmp_path / "data.jsonl"
        path.write_bytes(b"\n".join(lines))
        data = load_data(task, path)
        check(data)
        n_used = len(data.train) + len(data.validation) + len(data.test)
        assert n_used >= len(good)
        assert n_used + sum(data.skipped.values()) == sum(bool(line.strip()) for line in lines)

    run()


# Fitted steerings


def saved() -> tuple[dict[str, Any], bytes]:
    """Return the JSON and the tensors of a steering."""
    steering = Steering(edits=(PlacedEdit(Site("resid_post", 1), Add(torch.ones(4), 2.0)),))
    text, tensors = steering._pack()
    return json.loads(text), save(tensors)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """Return a JSON value with one of its parts replaced, removed or added, at any depth."""
    keys = sorted(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or draw(st.integers(0, 5)) == 0:
        return draw(VALUES | st.sampled_from(CLASSES))
    key = draw(st.sampled_from(keys))
    new = value.copy()
    if draw(st.integers(0, 5)) == 0:
        del new[key]
    elif isinstance(new, dict) and draw(st.integers(0, 5)) == 0:
        new[draw(st.text(max_size=5))] = draw(VALUES)
    else:
        new[key] = draw(changed(value[key]))
    return new


CLASSES = [
    "os:system",
    "steerbench.edits:Add",
    "steerbench.edits:Affine",
    "steerbench.steering:Steering",
    "steerbench.cli:main",
    "methods/static_prompt:StaticPrompt",
    "methods/alignez:AlignEZ",
    "methods/x:Edit",
]


def load_steering(folder: Path, text: bytes, tensors: bytes) -> None:
    """Write and load a steering; it may be refused, and in no other way than by SteerbenchError."""
    (folder / Steering.JSON).write_bytes(text)
    (folder / Steering.TENSORS).write_bytes(tensors)
    with suppress(SteerbenchError):
        Steering.load(folder)


def test_any_steering(tmp_path: Path) -> None:
    record, tensors = saved()
    text = json.dumps(record).encode()

    @FIXED
    @given(
        st.binary(max_size=60) | damaged(text) | changed(record).map(lambda r: json.dumps(r).encode()),
        st.binary(max_size=60) | damaged(tensors) | st.just(tensors),
    )
    @example(b"[" * 100_000, tensors)
    def run(text: bytes, tensors: bytes) -> None:
        load_steering(tmp_path, text, tensors)

    run()
