"""A packed study: many records in one folder of three files, for keeping and sharing.

`protocol.json` has the distinct protocols by a short hash, `records.jsonl` a record per line without its examples,
`examples.parquet` the examples of all, in the order of the lines.
"""

import json
import shutil
import uuid
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from steerbench.errors import SteerbenchError
from steerbench.files import write_whole
from steerbench.records.damage import LeftOut, check_schema, reading
from steerbench.records.identity import Key, fingerprint
from steerbench.records.record import LABELS, READABLE, Record, check_kinds, to_json
from steerbench.records.seal import check_seal

PACKED = "records.jsonl"
"""The file that makes a folder a packed study."""

_IDENTITY = "record_identity"
"""Column of the packed examples: whose row it is."""


def pack(records: Sequence[Record], folder: Path) -> None:
    """Write records as a packed study; the same records give the same bytes. The folder appears whole or not at all.

    Raises SteerbenchError if the folder holds something, if a record is given twice, and if the tables cannot be kept
    in one file as they are.
    """
    records = sorted(records, key=lambda record: record.folder_name)
    identities = [record.identity for record in records]
    if twice := next((r for r in records if identities.count(r.identity) > 1), None):
        raise SteerbenchError(f"{twice.folder_name} is there twice; leave one of its folders out.")
    partial = folder.absolute().with_name(f".partial-{uuid.uuid4().hex}")
    try:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise SteerbenchError(f"{folder} is there already and holds something; choose a new folder.")
        partial.mkdir(parents=True)
        _write(records, partial)
        partial.rename(folder.absolute())
    except OSError as error:
        raise SteerbenchError(f"cannot write {folder}: {error.strerror or error}; choose another folder.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(records: Sequence[Record], folder: Path) -> None:
    """Write the three files, and check that they give the records back."""
    protocols = {_short(record.protocol): record.protocol for record in records}
    write_whole(folder / "protocol.json", json.dumps(protocols, indent=1, allow_nan=False) + "\n")
    write_whole(folder / PACKED, "".join(f"{_line(record)}\n" for record in records))
    try:
        write_whole(folder / "examples.parquet", _table(records))
        for record, again in zip(records, unpack(folder / PACKED), strict=True):
            pd.testing.assert_frame_equal(record.examples, again.examples, check_exact=True)
    except (pa.ArrowException, AssertionError, SteerbenchError) as error:
        raise SteerbenchError(
            f"the examples of these records do not fit one table ({error}); pack them into separate folders."
        ) from error


def _line(record: Record) -> str:
    values = json.loads(to_json(record)) | {"protocol": _short(record.protocol)}
    columns = {str(name): str(dtype) for name, dtype in record.examples.dtypes.items()}
    packed = {"identity": record.identity, "rows": len(record.examples), "columns": columns, "record": values}
    return json.dumps(packed, allow_nan=False)


def _table(records: Sequence[Record]) -> bytes:
    """Return the examples of all records as Parquet; a column that a record lacks is null in its rows."""
    tables = [
        pa.Table.from_pandas(record.examples, preserve_index=False)
        .replace_schema_metadata(None)
        .append_column(_IDENTITY, pa.array([record.identity] * len(record.examples), pa.string()))
        for record in records
    ]
    buffer = BytesIO()
    whole = pa.concat_tables(tables, promote_options="permissive")
    pq.write_table(whole, buffer, compression="zstd", compression_level=19, write_page_checksum=True)
    return buffer.getvalue()


def unpack(path: Path, left_out: LeftOut | None = None) -> list[Record]:
    """Read the records of a packed study from the path of its `records.jsonl`, in the order of its lines.

    Raises SteerbenchError for a file that is missing, damaged, edited or of another schema, naming it. A record whose
    seal does not hold is told to `left_out`, where there is one, and the others are read.
    """
    protocols = _protocols(path.with_name("protocol.json"))
    with reading(path):
        lines = [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        found = [_record(path, line, protocols) for line in lines]
    table = path.with_name("examples.parquet")
    with reading(table):  # of itself, Parquet reads flipped bits as they are
        whole = pq.read_table(table, page_checksum_verification=True)
        if whole.num_rows != sum(line["rows"] for line in lines):
            raise ValueError(f"it does not have the rows that {PACKED} names")
        start = 0
        for record, line in zip(found, lines, strict=True):
            rows = whole.slice(start, line["rows"])
            start += line["rows"]
            if set(rows[_IDENTITY].to_pylist()) - {line["identity"]}:
                raise ValueError(f"it does not have the rows of {record.folder_name}")
            frame = rows.select(list(line["columns"])).to_pandas()
            other = {name: dtype for name, dtype in line["columns"].items() if str(frame[name].dtype) != dtype}
            frame = frame.astype(other) if other else frame
            object.__setattr__(record, "examples", frame)
    return [record for record, line in zip(found, lines, strict=True) if _holds(table, line, record, left_out)]


def _protocols(path: Path) -> dict[str, Key]:
    with reading(path):
        found: dict[str, Key] = dict(json.loads(path.read_text(encoding="utf-8")))
        if any(_short(protocol) != key for key, protocol in found.items()):
            raise ValueError("it was edited")
    return found


def _record(path: Path, line: dict[str, Any], protocols: dict[str, Key]) -> Record:
    values = line["record"]
    check_schema(path, values.get("schema_version"), READABLE)
    values = {name: value for name, value in values.items() if name != "seal"}
    record = Record(**values | {"protocol": protocols[values["protocol"]]})
    check_kinds(record)
    if not (record.labels.keys() >= LABELS and record.identity == line["identity"]):
        raise ValueError("it was edited")
    return record


def _holds(path: Path, line: dict[str, Any], record: Record, left_out: LeftOut | None) -> bool:
    """Tell whether the seal of a record holds. Raises SteerbenchError if not, unless `left_out` is to be told."""
    try:
        with reading(path.with_name(f"{PACKED}, {record.folder_name}")):
            check_seal(line["record"] | {"protocol": record.protocol}, record.examples)
    except SteerbenchError as error:
        if left_out is None:
            raise
        left_out(str(error))
        return False
    return True


def _short(protocol: Key) -> str:
    return fingerprint(protocol)[:12]
