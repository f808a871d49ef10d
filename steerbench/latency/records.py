"""Records of timings: one JSON file each, whole or absent."""

import json
import os
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from steerbench.errors import SteerbenchError
from steerbench.protocol import fingerprint

KIND, SCHEMA_VERSION = "latency", 1


def write_latency(record: Mapping[str, Any], folder: Path) -> Path:
    """Write a record into a folder, which is made if need be, and return its file.

    The name holds the model, the device, the time and a hash: nothing is overwritten. Raises SteerbenchError if it
    cannot be written.
    """
    path = folder / _file_name(record)
    partial = folder / f".partial-{uuid.uuid4().hex}"
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        raise SteerbenchError(
            f"cannot write to {folder}: {error.strerror}; free some space, or choose another folder with --out."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return path


def load_latency(folder: Path) -> list[dict[str, Any]]:
    """Return the records of timings in a folder, oldest first.

    Raises SteerbenchError if there is no such folder, and for a file that is damaged or of another schema.
    """
    if not folder.is_dir():
        raise SteerbenchError(f"{folder} is no folder; `steerbench latency --out FOLDER` makes one with timings.")
    records = [_read(path) for path in sorted(folder.glob("*.json"))]
    return sorted(records, key=lambda record: str(record["created"]))


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SteerbenchError(f"{path} is damaged ({error}); delete it and run `steerbench latency` again.") from error
    found = (record.get("kind"), record.get("schema_version")) if isinstance(record, dict) else None
    if not isinstance(record, dict) or found != (KIND, SCHEMA_VERSION):
        raise SteerbenchError(
            f"{path} is no record of timings with schema {SCHEMA_VERSION}; move it elsewhere, or run "
            f"`steerbench latency` again."
        )
    return record


def _file_name(record: Mapping[str, Any]) -> str:
    moment = re.sub(r"[^0-9T]", "", record["created"].partition("+")[0])
    parts = (record["model"]["name"], record["device"], f"{moment}-{fingerprint(record)[:8]}")
    return "--".join(re.sub(r"[^A-Za-z0-9_.+=]+", "-", part)[:60] for part in parts) + ".json"
