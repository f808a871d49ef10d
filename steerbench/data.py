"""Read the records of a task, from the Hub or from local files, into three disjoint splits."""

import gzip
import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from steerbench.errors import SteerbenchError
from steerbench.task import Example, Task, TaskData, Unusable

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_SPLIT_WORDS = {"train": "train", "test": "test"} | dict.fromkeys(["validation", "valid", "val", "dev"], "validation")
_PRECEDENCE = ("test", "validation", "train")  # what stands in two splits stays in the first of them
_CARVED = {"test": 0.3, "validation": 0.1}  # share of the groups that goes into a split the data does not have
_BROKEN = object()


class _Source(NamedTuple):
    """One file, or one split of the Hub."""

    name: str
    split: str | None
    rows: Iterable[object]


class _Origin(NamedTuple):
    sources: list[_Source]
    revision: str


def load_data(task: Task, path: Path | None = None) -> TaskData:
    """Read a task from a file or folder in the original schema, or from the Hub at the pinned revision.

    Splits that the data has are kept; missing ones are carved out by group. Neither the order of the
    rows nor the path of the files changes the result; the first n of a split are a fixed random sample.
    """
    origin = _from_hub(task) if path is None else _from_path(path)
    skipped: Counter[str] = Counter()
    pools = _read(task, origin.sources, skipped)
    splits = _carve(task, _disjoint(task, pools, skipped))
    train, validation, test = (tuple(splits[split]) for split in ("train", "validation", "test"))
    return TaskData(train, validation, test, origin.revision, dict(sorted(skipped.items())))


def folder_of(name: str, path: Path | None) -> Path | None:
    """Return where a task's data lie: a folder may hold one folder per task, with the task's name."""
    if path is None:
        return None
    return path / name if (path / name).is_dir() else path


def _from_hub(task: Task) -> _Origin:
    import datasets

    try:
        splits = datasets.load_dataset(task.hub, revision=task.hub_revision)
    except Exception as error:  # the Hub, the network and the cache fail in many ways, all alike to the user
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SteerbenchError(
            f"cannot load {task.hub} at revision {task.hub_revision} from the Hugging Face Hub: {reason}. "
            f"Without the network, download its files and pass them with --data PATH ({', '.join(_SUFFIXES)})."
        ) from error
    sources = [_Source(f"{task.hub} ({name})", _split_of([str(name)]), rows) for name, rows in splits.items()]
    return _Origin(sources, f"{task.hub}@{task.hub_revision}")


def _from_path(path: Path) -> _Origin:
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise SteerbenchError(f"no data at {path}: {error}. Check the path given to --data.") from error
    if path.is_dir():
        return _from_folder(path)
    if _suffix(path) is None:
        raise SteerbenchError(f"cannot read {path}: its name must end in one of {', '.join(_SUFFIXES)}.")
    return _Origin([_Source(str(path), None, _rows(path))], f"sha256:{_file_hash(path)}")


def _from_folder(folder: Path) -> _Origin:
    names = [file.relative_to(folder) for file in folder.rglob("*") if _suffix(file) and file.is_file()]
    names = sorted((name for name in names if not any(part.startswith(".") for part in name.parts)), key=Path.as_posix)
    if not names:
        raise SteerbenchError(f"no data file in {folder}: it must hold files that end in {', '.join(_SUFFIXES)}.")
    sources = [_Source(str(folder / name), _split_of(name.parts[::-1]), _rows(folder / name)) for name in names]
    listing = "".join(f"{name.as_posix()}\0{_file_hash(folder / name)}\n" for name in names)
    return _Origin(sources, f"sha256:{hashlib.sha256(os.fsencode(listing)).hexdigest()}")


def _split_of(names: Sequence[str]) -> str | None:
    """Return the split told by the first name that tells one, as `base-test.jsonl` or `train-00000-of-00002`."""
    for name in names:
        found = {_SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLIT_WORDS}
        if len(found) > 1:
            raise SteerbenchError(f"the name {name!r} fits several splits: {', '.join(sorted(found))}. Rename it.")
        if found:
            return found.pop()
    return None


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), None)


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SteerbenchError(f"cannot read {path}: {error.strerror}. Check that you may read it.") from error


# Rows of one file


def _rows(path: Path) -> Iterator[object]:
    from pyarrow import ArrowException  # type: ignore[import-untyped]

    try:
        yield from _parquet_rows(path) if _suffix(path) == ".parquet" else _json_rows(path)
    except (OSError, EOFError, zlib.error, ArrowException, ValueError, OverflowError, LookupError) as error:
        raise SteerbenchError(f"cannot read {path}: it is damaged or cut off ({error}). Download it again.") from error


def _parquet_rows(path: Path) -> Iterator[object]:
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    with ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            yield from batch.to_pylist()


def _json_rows(path: Path) -> Iterator[object]:
    """Read JSON lines, or one JSON array, whatever the suffix says: files of the Hub mix them up."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
        if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            array = _json(first + file.read())
            if isinstance(array, list):
                yield from array
                return
        file.seek(0)
        yield from (_json(line) for line in file if line.strip())


def _json(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _BROKEN


# From rows to splits


def _read(task: Task, sources: Sequence[_Source], skipped: Counter[str]) -> dict[str, list[Example]]:
    """Parse all rows. Without a train split all is one pool, which goes by the name of train."""
    named = [source for source in sources if source.split] or sources
    if len(named) < len(sources):
        skipped["file without a split name"] = len(sources) - len(named)
    has_train = any(source.split == "train" for source in named)
    pools: dict[str, list[_Source]] = {}
    for source in named:
        pools.setdefault((has_train and source.split) or "train", []).append(source)
    return {split: _unique(task, pool, skipped) for split, pool in pools.items()}


def _unique(task: Task, sources: Sequence[_Source], skipped: Counter[str]) -> list[Example]:
    """Keep one example of each prompt (or group), the lowest in rank, and sort them by rank."""
    word = task.group_word if task.one_per_group else "prompt"
    kept: dict[Hashable, Example] = {}
    for example in (example for source in sources for example in _usable(task, source, skipped)):
        key = example.group if task.one_per_group else example.prompt
        skipped.update([f"duplicate {word}"] if key in kept else [])
        kept[key] = min(kept.get(key, example), example, key=_rank)
    return sorted(kept.values(), key=_rank)


def _usable(task: Task, source: _Source, skipped: Counter[str]) -> Iterator[Example]:
    reasons: Counter[str] = Counter()
    usable = 0
    for row in source.rows:
        try:
            example = _parse(task, row)
        except Unusable as error:
            reasons[str(error)] += 1
        else:
            usable += 1
            yield example
    if not usable:
        raise _nothing(task, source.name, reasons)
    skipped.update(reasons)


def _parse(task: Task, row: object) -> Example:
    if row is _BROKEN:
        raise Unusable("broken line")
    if not isinstance(row, Mapping):
        raise Unusable("not an object")
    try:
        return task.parse(row)
    except Unusable:
        raise
    except Exception as error:  # a fault of the task, which may be anyone's
        raise SteerbenchError(
            f"task {type(task).__name__} cannot read a row with the fields {', '.join(map(str, row))}: "
            f"{type(error).__name__}: {error}. Its parse must raise Unusable with a reason where a row cannot be used."
        ) from error


def _disjoint(task: Task, pools: Mapping[str, list[Example]], skipped: Counter[str]) -> dict[str, list[Example]]:
    """Leave out what an earlier split of the precedence holds already, by group and by prompt."""
    groups: set[str] = set()
    prompts: set[Hashable] = set()
    splits: dict[str, list[Example]] = {}
    for split in (split for split in _PRECEDENCE if split in pools):
        splits[split] = []
        for example in pools[split]:
            if example.group in groups:
                skipped[f"{task.group_word} in another split"] += 1
            elif example.prompt in prompts:
                skipped["duplicate prompt"] += 1
            else:
                splits[split].append(example)
                prompts.add(example.prompt)
        if not splits[split]:
            raise _nothing(task, f"split {split!r}", skipped)
        groups.update(example.group for example in splits[split])
    return splits


def _carve(task: Task, splits: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """Take missing splits out of train: the groups are ranked by hash and cut at fixed shares."""
    missing = [split for split in _CARVED if split not in splits]
    groups = sorted({example.group for example in splits["train"]}, key=_hash)
    if len(groups) <= len(missing):
        raise SteerbenchError(
            f"too few records to make the splits {', '.join(['train', *missing])}: "
            f"they need {len(missing) + 1} different {task.group_word}s, and there are {len(groups)}. Add records."
        )
    home: dict[str, str] = {}
    for split in missing:
        count = max(1, round(_CARVED[split] * len(groups)))
        home.update(dict.fromkeys(groups[len(home) : len(home) + count], split))
    carved = {split: [e for e in splits["train"] if home.get(e.group) == split] for split in missing}
    return splits | carved | {"train": [e for e in splits["train"] if e.group not in home]}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _rank(example: Example) -> str:
    return _hash(example.id)


def _nothing(task: Task, where: str, reasons: Mapping[str, int]) -> SteerbenchError:
    counts = ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items())) or "it is empty"
    return SteerbenchError(f"no usable record in {where}: {counts}. Give records in the schema of {task.hub}.")
