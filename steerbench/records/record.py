"""A record: one result, what identifies it, and its metrics."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from steerbench.files import file_name
from steerbench.records.columns import METRIC_COLUMNS
from steerbench.records.identity import Key, fingerprint
from steerbench.records.seal import FIRST_SEALED, seal

SCHEMA_VERSION = 2
"""2: raw scores alone, sealed. Those of 1 also keep what compares with other records."""
READABLE = (1, 2)

LABELS = {"task", "model", "reward_model", "held_out_reward"}

METRICS = {column.name: column.meaning for column in METRIC_COLUMNS}
"""Metrics and their meaning. A record keeps the raw ones: means of columns, over tokens those of `kl` and `nll`."""


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
    """Means over the test prompts of raw scores; see `METRICS` for their meaning, `comparisons` for the others."""
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
        return file_name(self.labels["task"], self.method, f"seed{self.seed}", self.identity[:12])


_NUMBERS = ("metrics", "seconds", "counts")
_KINDS = {
    **dict.fromkeys(("method", "steerbench", "steering", "created"), str),
    **dict.fromkeys(("seed", "truncated"), int),
    **dict.fromkeys(("protocol", "labels", "latency", "environment", "tuning", "report", *_NUMBERS), dict),
    "parts": list,
}


def check_kinds(record: Record) -> None:
    """Raise ValueError that names a value of another kind than a record has, where there is no seal to tell it."""
    if record.schema_version >= FIRST_SEALED:
        return
    for name, kind in _KINDS.items():
        if not isinstance(getattr(record, name), kind):
            raise ValueError(f"its {name} is no {kind.__name__}")
    texts = [f"labels.{key}" for key, value in record.labels.items() if not isinstance(value, str)]
    texts += [f"parts[{i}]" for i, part in enumerate(record.parts) if not isinstance(part, dict)]
    for name in _NUMBERS:
        texts += [f"{name}.{k}" for k, v in getattr(record, name).items() if not isinstance(v, int | float)]
    if texts:
        raise ValueError(f"its {texts[0]} is of the wrong kind")


def identity(protocol: Key, parts: list[dict[str, Any]], seed: int, version: str) -> str:
    """Return the identity of a record, known before it is measured."""
    return fingerprint({"protocol": protocol, "parts": parts, "seed": seed, "steerbench": version})


def to_json(record: Record) -> str:
    """Return the JSON of a record, without its examples, and with the seal of both."""
    values = asdict(record)
    del values["examples"]
    if record.schema_version >= FIRST_SEALED:
        values["seal"] = seal(values, record.examples)
    return json.dumps(values, indent=1, allow_nan=False) + "\n"
