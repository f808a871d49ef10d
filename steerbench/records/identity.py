"""What tells two measurements apart: keys, their differences, and hashes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Key = dict[str, Any]
"""The protocol as it was measured: names and paths replaced by revisions and content hashes."""


class Difference(NamedTuple):
    """A field in which two protocols differ."""

    field: str
    left: Any
    right: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.left} != {self.right}"


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    """Return the fields in which two keys differ, in the order of the key."""
    names = [*left, *(name for name in right if name not in left)]
    return [Difference(n, left.get(n), right.get(n)) for n in names if left.get(n) != right.get(n)]


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def asset(name: str, revision: str) -> str:
    """Return what identifies a model: `name@commit` for the Hub, the content hash alone for a folder."""
    return revision if revision.startswith("sha256:") else f"{name}@{revision}"


def ids_hash(ids: Sequence[str]) -> str:
    """Return a short hash of the examples used, in order."""
    return fingerprint(list(ids))[:16]
