"""Records of timings: one JSON file each, whole or absent."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steerbench.errors import SteerbenchError
from steerbench.files import file_name, write_whole
from steerbench.records.identity import fingerprint

KIND, SCHEMA_VERSION = "latency", 1
_SHAPE: dict[str, Any] = {
    "created": str,
    "device": str,
    "model": {"name": str, "parameters": int | float, "dtype": str, "attention": str, "weights": str},
    "grid": {"new_tokens": int, "rounds": int},
    "cells": [
        {
            "batch_size": int,
            "prompt_tokens": int,
            "arms": [({"method": str, "ratios": dict}, {"method": str, "problem": str})],
        }
    ],
}
"""What readers count on: names with their types, `[each]` of a list, `(one, or another)`."""


def write_latency(record: Mapping[str, Any], folder: Path) -> Path:
    """Write a record into a folder, which is made if need be, and return its file.

    The name holds the model, the device, the time and a hash: nothing is overwritten. Raises SteerbenchError if it
    cannot be written.
    """
    path = folder / _file_name(record)
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise SteerbenchError(
            f"cannot write to {folder}: {error.strerror}; free some space, or choose another folder with --out."
        ) from error
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
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    found = (record.get("kind"), record.get("schema_version")) if isinstance(record, dict) else None
    if not isinstance(record, dict) or found != (KIND, SCHEMA_VERSION):
        raise SteerbenchError(
            f"{path} is no record of timings with schema {SCHEMA_VERSION}; move it elsewhere, or run "
            f"`steerbench latency` again."
        )
    for fault in _faults(record, _SHAPE, "it"):
        raise _damaged(path, fault)
    return record


def _damaged(path: Path, why: object) -> SteerbenchError:
    return SteerbenchError(f"{path} is damaged ({why}); delete it and run `steerbench latency` again.")


def _faults(value: object, shape: Any, name: str) -> Iterator[str]:
    """Yield what a value has not that it should have."""
    if isinstance(shape, dict):
        for key, inner in shape.items():
            if isinstance(value, dict) and key in value:
                yield from _faults(value[key], inner, key)
            else:
                yield f"{name} has no {key!r}"
    elif isinstance(shape, list):
        for each in value if isinstance(value, list) else [None]:
            yield from _faults(each, shape[0], f"one of {name}")
    elif isinstance(shape, tuple):
        yield from min((list(_faults(value, each, name)) for each in shape), key=len)
    elif not isinstance(value, shape):
        yield f"{name} is {value!r}"


def _file_name(record: Mapping[str, Any]) -> str:
    moment = re.sub(r"[^0-9T]", "", record["created"].partition("+")[0])
    return file_name(record["model"]["name"], record["device"], f"{moment}-{fingerprint(record)[:8]}") + ".json"
