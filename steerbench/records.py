"""Records: one result each, a folder with `record.json` and `examples.parquet`, whole or absent."""

import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from steerbench.errors import SteerbenchError
from steerbench.protocol import Key, fingerprint

SCHEMA_VERSION = 1
_PARTIAL = ".partial-"
_STALE = 3600
"""Seconds after which nobody is still writing a record: it takes moments."""

FILES = ("record.json", "examples.parquet")
"""What a record's folder holds."""
_LABELS = {"task", "model", "reward_model", "held_out_reward"}

METRICS = {
    "reward": "mean score by the guiding reward model",
    "held_out_reward": "mean score by the reward model that no method has seen",
    "gold": "true score of the response, from -4 to 5; the testbed's data alone have one",
    "win_rate": "share of prompts with a higher reward than the unsteered response; a tie, within 1e-4, is one half",
    "win_rate_preferred": "share of prompts with a higher reward than the data set's preferred reply, ties one half",
    "held_out_win_rate": "as `win_rate`, by the held-out reward",
    "held_out_win_rate_preferred": "as `win_rate_preferred`, by the held-out reward",
    "worse": "share of prompts with a lower reward than the unsteered response, by more than 1e-4",
    "diversity": "product of distinct n-gram ratios within a response, n = 2..4",
    "coherence": "cosine of the sentence embeddings of prompt and response",
    "length": "tokens of the response",
    "kl": "KL(steered || unsteered) per token of the responses, in nats; a bound where candidates are chosen among",
    "perplexity": "of the responses under the unsteered model with the plain prompt, over all tokens",
    "truncated": "share of responses that reached the token limit",
    "empty": "share of responses without text",
}
"""What a record keeps of its per-example table: the means of columns, and over tokens those of `kl` and `nll`."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One result: method x task x protocol x seed."""

    method: str
    """The method as given, in canonical form."""
    parts: list[dict[str, Any]]
    """For each composed part its name, all hyperparameters, and the hash of its source file."""
    protocol: Key
    """Every choice that must be equal to compare."""
    seed: int
    steerbench: str
    """Version of the package."""
    labels: dict[str, str]
    """Readable names of the task, the models and the data; no part of the identity."""
    metrics: dict[str, float]
    """Means over the test prompts; see `METRICS` for their meaning."""
    latency: dict[str, Any]
    """Timings of this method and the unsteered model, interleaved, with the device."""
    counts: dict[str, int]
    """Records and prompts left out, by reason."""
    truncated: int
    """Texts that the guiding reward model scored without their beginning."""
    environment: dict[str, Any]
    """Versions, device, batch size and threads."""
    seconds: dict[str, float]
    """Wall time of tune, fit, generate and score. What methods share counts for the first that asked for it."""
    steering: str
    """Digest of the fitted steering."""
    created: str
    """UTC, ISO 8601."""
    tuning: dict[str, Any] = field(default_factory=dict)
    """What was tried on the validation split, and what was chosen; empty without tuning."""
    report: dict[str, Any] = field(default_factory=dict)
    """What the method says about its own fit, and what the steering does to states and tokens."""
    schema_version: int = SCHEMA_VERSION
    examples: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False, repr=False)
    """One row per test prompt: texts and scores. Kept as Parquet beside the JSON."""

    @property
    def identity(self) -> str:
        """Hash of what makes this record what it is."""
        return identity(self.protocol, self.parts, self.seed, self.steerbench)

    @property
    def folder_name(self) -> str:
        """Name of the record's folder: readable, and unique by its identity."""
        method = re.sub(r"[^A-Za-z0-9_.+=-]+", "-", self.method)[:60]
        return f"{self.labels['task']}--{method}--seed{self.seed}--{self.identity[:12]}"


def identity(protocol: Key, parts: list[dict[str, Any]], seed: int, version: str) -> str:
    """Return the identity of a record, known before it is measured."""
    return fingerprint({"protocol": protocol, "parts": parts, "seed": seed, "steerbench": version})


class Store:
    """A folder of records. Nothing is overwritten; a record appears in one step or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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
        return next((r for r in map(read, matches) if r.identity == identity), None)

    def write(self, record: Record) -> Path:
        """Write a record and return its folder. Raises SteerbenchError if the disk is full."""
        final = self.folder / record.folder_name
        partial = self.folder / f"{_PARTIAL}{uuid.uuid4().hex}"
        with _writing(self.folder):
            try:
                partial.mkdir(parents=True)
                _write_synced(
                    partial / "examples.parquet", record.examples.to_parquet(index=False, write_page_checksum=True)
                )
                _write_synced(partial / "record.json", to_json(record).encode())
                _appear(partial, final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return final

    def records(self) -> list[Record]:
        """Return all records below the folder, in the order of their paths."""
        if not self.folder.is_dir():
            lacking = "no folder" if self.folder.exists() else "not there"
            raise SteerbenchError(f"{self.folder} is {lacking}; `steerbench run --out FOLDER` makes one with records.")
        files = sorted(self.folder.rglob("record.json"))
        return [read(path) for path in files if not path.parent.name.startswith(_PARTIAL)]


def to_json(record: Record) -> str:
    """Return the JSON of a record, without its examples."""
    values = asdict(record)
    del values["examples"]
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def records_in(folders: Iterable[Path]) -> list[Record]:
    """Return the records in folders, in the order of their paths. Raises SteerbenchError if there is none."""
    folders = list(folders)
    records = [record for folder in folders for record in Store(folder).records()]
    if not records:
        names = ", ".join(map(str, folders))
        raise SteerbenchError(f"there are no records in {names}; `steerbench run --out FOLDER` makes some.")
    return records


def read(path: Path) -> Record:
    """Read `record.json` and the Parquet beside it.

    Raises SteerbenchError for a file that is missing, damaged or of another schema, and where the name of the folder
    is not the record's: then one of them was changed.
    """
    with _reading(path):
        values = dict(json.loads(path.read_text(encoding="utf-8")))
    if (found := values.get("schema_version")) != SCHEMA_VERSION:
        raise SteerbenchError(
            f"{path} has schema {found}, and this steerbench reads {SCHEMA_VERSION}; move its folder elsewhere, or "
            f"install the version that made it."
        )
    table = path.parent / "examples.parquet"
    with _reading(table):  # of itself, Parquet reads flipped bits as they are
        examples = pd.read_parquet(table, page_checksum_verification=True)
    with _reading(path):
        record = Record(**values, examples=examples)
        if not (record.labels.keys() >= _LABELS and path.parent.name.endswith(f"--{record.identity[:12]}")):
            raise ValueError("it was edited, or its folder renamed")
    return record


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    again = "move its folder away and run again."
    try:
        yield
    except FileNotFoundError as error:
        raise SteerbenchError(f"{path} is missing; {again}") from error
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise SteerbenchError(f"cannot read {path}: {error.strerror}.") from error
        raise SteerbenchError(f"{path} is damaged ({error}); {again}") from error


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


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
