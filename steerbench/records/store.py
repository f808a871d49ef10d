"""Records: one result each, a folder with `record.json` and `examples.parquet`, whole or absent; or a packed study."""

import errno
import json
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from steerbench.errors import SteerbenchError
from steerbench.files import write_whole
from steerbench.records.damage import LeftOut, check_schema, reading
from steerbench.records.packing import PACKED, unpack
from steerbench.records.record import LABELS, READABLE, Record, check_kinds, to_json
from steerbench.records.seal import check_seal

_PARTIAL = ".partial-"
_STALE = 3600
"""Seconds after which nobody is still writing a record: it takes moments."""


class Store:
    """A folder of records. Nothing is overwritten; a record appears in one step or not at all."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def prepare(self) -> None:
        """Make the folder and check that it can be written, before anything is measured. Raises SteerbenchError."""
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_stale()
            probe = self.folder / f"{_PARTIAL}{uuid.uuid4().hex}"
            probe.mkdir()
            probe.rmdir()

    def _remove_stale(self) -> None:
        """Remove what processes left that were killed while they wrote."""
        for partial in self.folder.glob(f"{_PARTIAL}*"):
            with suppress(OSError):  # another process may be removing it
                if time.time() - partial.stat().st_mtime > _STALE:
                    shutil.rmtree(partial)

    def find(self, identity: str) -> Record | None:
        """Return the record with an identity, or None."""
        matches = [path / "record.json" for path in sorted(self.folder.glob(f"*--{identity[:12]}"))]
        if found := next((r for r in map(read, matches) if r.identity == identity), None):
            return found
        packed = [path for pattern in (PACKED, f"*/{PACKED}") for path in sorted(self.folder.glob(pattern))]
        named = [path for path in packed if _whole(path) and identity in _text(path)]
        return next((r for path in named for r in unpack(path) if r.identity == identity), None)

    def write(self, record: Record) -> Path:
        """Write a record and return its folder. Raises SteerbenchError if the disk is full."""
        final = self.folder / record.folder_name
        partial = self.folder / f"{_PARTIAL}{uuid.uuid4().hex}"
        with _writing(self.folder):
            try:
                partial.mkdir(parents=True)
                write_whole(
                    partial / "examples.parquet", record.examples.to_parquet(index=False, write_page_checksum=True)
                )
                write_whole(partial / "record.json", to_json(record))
                _appear(partial, final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return final

    def records(self, left_out: LeftOut | None = None) -> list[Record]:
        """Return all records below the folder, packed ones too, in the order of their paths.

        Raises SteerbenchError for one that cannot be read, or, with `left_out`, tells it why and goes on.
        """
        if not self.folder.is_dir():
            lacking = "no folder" if self.folder.exists() else "not there"
            raise SteerbenchError(f"{self.folder} is {lacking}; `steerbench run --out FOLDER` makes one with records.")
        files = sorted(path for name in ("record.json", PACKED) for path in self.folder.rglob(name) if _whole(path))
        return [record for path in files for record in _read_all(path, left_out)]


def _read_all(path: Path, left_out: LeftOut | None) -> list[Record]:
    try:
        return unpack(path, left_out) if path.name == PACKED else [read(path)]
    except SteerbenchError as error:
        if left_out is None:
            raise
        left_out(str(error))
        return []


def records_in(folders: Iterable[Path], left_out: LeftOut | None = None) -> list[Record]:
    """Return the records in folders, in the order of their paths. Raises SteerbenchError if there is none.

    What `left_out` is for stands at `Store.records`.
    """
    folders = list(folders)
    records = [record for folder in folders for record in Store(folder).records(left_out)]
    if not records:
        names = ", ".join(map(str, folders))
        raise SteerbenchError(f"there are no records in {names}; `steerbench run --out FOLDER` makes some.")
    return records


def read(path: Path) -> Record:
    """Read `record.json` and the Parquet beside it.

    Raises SteerbenchError for a file that is missing, damaged or of another schema, and where the name of the folder
    or the seal is not the record's: then one of them was changed.
    """
    with reading(path):
        values = dict(json.loads(path.read_text(encoding="utf-8")))
    check_schema(path, values.get("schema_version"), READABLE)
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    table = path.parent / "examples.parquet"
    # of itself, Parquet reads flipped bits as they are; pandas' own reader takes twice the time
    with reading(table), ParquetFile(table, page_checksum_verification=True) as file:
        whole = file.read(use_threads=False)
        described = (whole.schema.metadata or {}).get(b"pandas", b"{}")
        plain = _has_plain_columns(described)
        # put together into blocks, columns take twice the time to make, and to find
        examples = whole.to_pandas(use_threads=False, split_blocks=True, ignore_metadata=plain)
    with reading(path):
        record = Record(**{name: value for name, value in values.items() if name != "seal"}, examples=examples)
        check_kinds(record)
        if not (record.labels.keys() >= LABELS and path.parent.name.endswith(f"--{record.identity[:12]}")):
            raise ValueError("it was edited, or its folder renamed")
        check_seal(values, examples, whole)
    return record


@lru_cache(maxsize=16)  # records of a kind have the same
def _has_plain_columns(described: bytes) -> bool:
    """Tell whether pandas needs nothing of a file's metadata to read it, which takes it half of the time."""
    values = json.loads(described)
    kinds = {column["numpy_type"] for column in values.get("columns", [])}
    return not values.get("index_columns") and kinds <= {"str", "int64", "float64", "bool"}


def _whole(path: Path) -> bool:
    """Whether a file is not of a folder that is still being written."""
    return not path.parent.name.startswith(_PARTIAL)


def _text(path: Path) -> str:
    with reading(path):
        return path.read_text(encoding="utf-8")


def _appear(partial: Path, final: Path) -> None:
    """Give a whole folder its name, unless another process was faster."""
    try:
        partial.rename(final)
    except OSError:
        if not (final / "record.json").is_file():
            raise


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free some space" if full else "choose another folder with --out"
        raise SteerbenchError(
            f"cannot write to {folder}: {error.strerror or error}; {fix} and run the same command again. "
            f"Finished records are kept."
        ) from error
