"""The seal of a record: a hash of all that it says, by which an edited or exchanged number or text is found."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from steerbench.records.identity import fingerprint

FIRST_SEALED = 2
"""The first schema whose records have a seal."""


def seal(values: Mapping[str, Any], examples: pd.DataFrame) -> str:
    """Return the hash of what a record's JSON holds beside it, and of the values and kinds of its examples' columns.

    It is of values, not of bytes: a table that is packed, or written by another version of Parquet, keeps it.
    """
    columns = {str(name): [column.dtype.kind, _plain(column)] for name, column in examples.items()}
    return fingerprint({"record": {k: v for k, v in values.items() if k != "seal"}, "examples": columns})


def check_seal(values: Mapping[str, Any], examples: pd.DataFrame) -> None:
    """Raise ValueError for a record that is not as it was sealed. Those of the first schema have no seal."""
    sealed = "seal" in values or values["schema_version"] >= FIRST_SEALED
    if sealed and values.get("seal") != seal(values, examples):
        raise ValueError("it was edited, or its examples were: the seal does not hold")


def _plain(column: pd.Series) -> list[Any]:
    plain: list[Any] = column.tolist()
    missing = column.isna().to_numpy()  # ten times as fast as pandas' `where`, and done for every column that is read
    return [None if gone else value for value, gone in zip(plain, missing, strict=True)] if missing.any() else plain
