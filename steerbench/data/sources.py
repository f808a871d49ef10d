"""Where the rows of a task come from: the Hub at a pinned revision, or local files in the original schema."""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from steerbench.data.task import Task
from steerbench.errors import SteerbenchError
from steerbench.plugins.spec import label_of

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv")

_SPLIT_WORDS = {"train": "train", "test": "test"} | dict.fromkeys(["validation", "valid", "val", "dev"], "validation")

BROKEN = object()
_TOLD = 8
"""Files that an error names."""


class Source(NamedTuple):
    """One file, or one split of the Hub."""

    name: str
    split: str | None
    rows: Iterable[object]


class Origin(NamedTuple):
    """Where the rows come from, and the revision that names their contents."""

    sources: list[Source]
    revision: str


def from_hub(task: Task) -> Origin:
    """Return the splits of the Hub at the task's pinned revision."""
    import datasets

    if not task.hub:
        raise SteerbenchError(
            f"task {type(task).__name__} names no data set of the Hub; give its file with --data PATH "
            f"({', '.join(_SUFFIXES)})."
        )
    try:
        config = [task.hub_config] if task.hub_config else []
        load = partial(datasets.load_dataset, task.hub, *config, revision=task.hub_revision)
        folders = task.hub_folders()
        loaded = {f"{folder}/": load(data_dir=folder) for folder in folders} if folders else {"": load()}
    except Exception as error:  # the Hub, the network and the cache fail in many ways, all alike to the user
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SteerbenchError(
            f"cannot load {task.hub} at revision {task.hub_revision} from the Hugging Face Hub: {reason}. "
            f"Without the network, download its files and pass them with --data PATH ({', '.join(_SUFFIXES)})."
        ) from error
    parts = [(f"{folder}{name}", name, rows) for folder, splits in loaded.items() for name, rows in splits.items()]
    sources = [Source(f"{task.hub} ({told})", _split_of([str(name)]), rows) for told, name, rows in parts]
    return Origin(sources, f"{task.hub}@{task.hub_revision}")


def from_path(path: Path, task: Task) -> Origin:
    """Return the rows of a file, or of the task's files in a folder. Raises SteerbenchError if there is none."""
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise SteerbenchError(f"no data at {path}: {reason}. Check the path given to --data.") from error
    if path.is_dir():
        return _from_folder(path, task)
    if _suffix(path) is None:
        raise SteerbenchError(f"cannot read {path}: its name must end in one of {', '.join(_SUFFIXES)}.")
    _of_task([Path(path.name)], task, path)
    return Origin([Source(str(path), None, _rows(path, task))], f"sha256:{_file_hash(path)}")


def _from_folder(folder: Path, task: Task) -> Origin:
    names = [file.relative_to(folder) for file in folder.rglob("*") if _suffix(file) and file.is_file()]
    names = sorted((name for name in names if not any(part.startswith(".") for part in name.parts)), key=Path.as_posix)
    if not names:
        raise SteerbenchError(f"no data file in {folder}: it must hold files that end in {', '.join(_SUFFIXES)}.")
    names = _of_task(names, task, folder)
    sources = [Source(str(folder / name), _split_of(name.parts[::-1]), _rows(folder / name, task)) for name in names]
    listing = "".join(f"{name.as_posix()}\0{_file_hash(folder / name)}\n" for name in names)
    return Origin(sources, f"sha256:{hashlib.sha256(os.fsencode(listing)).hexdigest()}")


def _of_task(names: Sequence[Path], task: Task, path: Path) -> list[Path]:
    """Return the files that the task reads. Raises SteerbenchError that names the others if there is none."""
    stems = [name.as_posix()[: -len(_suffix(name) or "")] for name in names]
    found = [name for name, stem in zip(names, stems, strict=True) if task.reads(stem)]
    if not found:
        told = ", ".join(sorted(set(stems))[:_TOLD])
        raise SteerbenchError(
            f"{path} has no file of the task {label_of(type(task).__name__, task)}, only {told}; give another --data, "
            f"or a setting that names one of these."
        )
    return found


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


def _rows(path: Path, task: Task) -> Iterator[object]:
    from pyarrow import ArrowException  # type: ignore[import-untyped]

    is_csv = _suffix(path) == ".csv"
    read = _parquet_rows if _suffix(path) == ".parquet" else _json_rows
    try:
        yield from _csv_rows(path, task.csv_columns) if is_csv else read(path)
    except (OSError, EOFError, zlib.error, csv.Error, ArrowException, ValueError, OverflowError, LookupError) as error:
        cure = "Save it as CSV in UTF-8 again." if is_csv else "Download it again."
        raise SteerbenchError(f"cannot read {path}: it is damaged or cut off ({error}). {cure}") from error


def _parquet_rows(path: Path) -> Iterator[object]:
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    with ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            yield from batch.to_pylist()


def _csv_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[object]:
    """Read a table whose first line names its columns, if these are not given. All values are text.

    That of a cell that is not there is None, and cells beyond the columns stand under None. UTF-8, with the mark that
    spreadsheets put in front or without.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, columns or None, strict=True)


def _json_rows(path: Path) -> Iterator[object]:
    """Read JSON lines, or one JSON array, whatever the suffix says: files of the Hub mix them up.

    Lines end in LF or CRLF, and a file in UTF-16 or UTF-32 is read, too. The texts themselves stay as they are.
    """
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as raw:
        file = _in_utf8(raw)
        first = next((line for line in file if line.strip()), b"")
        if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            array = _json(first + file.read())
            if isinstance(array, list):
                yield from array
                return
        file.seek(0)
        yield from (_json(line) for line in file if line.strip())


def _in_utf8(file: Any) -> Any:
    """Return a file of JSON with its bytes in UTF-8, whichever Unicode it is in."""
    encoding = json.detect_encoding(file.read(4))
    file.seek(0)
    if encoding.startswith("utf-8"):
        return file
    return io.BytesIO(file.read().decode(encoding).encode())


def _json(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return BROKEN
