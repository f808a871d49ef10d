"""Files that commands write, whole or as they were before, and JSON files of others that they read."""

import hashlib
import json
import os
import re
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from steerbench.errors import SteerbenchError

RECORD_FILES = ("record.json", "examples.parquet", "protocol.json", "records.jsonl")
"""What a record, or a packed study, is kept in; no command writes over it."""


def file_name(*texts: object) -> str:
    """Return a readable name of one file or folder, never hidden and never elsewhere, whatever the texts hold."""
    return "--".join(re.sub(r"[^A-Za-z0-9_.+=-]+", "-", str(text))[:60] for text in texts).lstrip(".")


def content_hash(path: Path) -> str:
    """Return `sha256:...` over the content of a file, or over names and contents of all files of a folder.

    Raises SteerbenchError if there is none.
    """
    if not path.exists():
        raise SteerbenchError(f"there is no file {path}.")
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.relative_to(path)}\0{content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def write_asked(path: Path, text: str) -> None:
    """Write a text file that the user named, whole; its folder is made if need be.

    Raises SteerbenchError if it cannot be written, and for the name of a record's file, which nothing overwrites.
    """
    if path.name in RECORD_FILES:
        raise SteerbenchError(f"{path} is the name of a record's file; choose another one.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise SteerbenchError(f"cannot write {path}: {error.strerror or error}; choose another file.") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one step, text as UTF-8 with its line ends as they are; on OSError, what was there stays."""
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():  # such as /dev/stdout
        path.write_bytes(data)
        return
    partial = path.with_name(f".partial-{uuid.uuid4().hex}")  # short: a long name plus a suffix may be too long
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path.resolve())  # a link stays one
    finally:
        with suppress(OSError):
            partial.unlink()


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises SteerbenchError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SteerbenchError(f"{path} cannot be read as JSON: {error}; write or download it again.") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises SteerbenchError if it cannot be read or holds something else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise SteerbenchError(f"{path} holds no JSON object; write or download it again.")
    return found
