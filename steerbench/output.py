"""Files that commands write: whole or as they were before."""

import os
import uuid
from contextlib import suppress
from pathlib import Path

from steerbench.errors import SteerbenchError
from steerbench.records import FILES


def write_whole(path: Path, text: str) -> None:
    """Write a text file as UTF-8 in one step: if it fails, what was there before stays.

    Raises SteerbenchError if it cannot be written, and for the name of a record's file, which nothing overwrites.
    """
    if path.name in FILES:
        raise SteerbenchError(f"{path} is the name of a record's file; choose another one.")
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # such as /dev/stdout
            path.write_text(text, encoding="utf-8", newline="")
        else:
            _replace(path, partial, text)
    except OSError as error:
        raise SteerbenchError(f"cannot write {path}: {error.strerror or error}; choose another file.") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _replace(path: Path, partial: Path, text: str) -> None:
    with partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path.resolve())  # a link stays one
