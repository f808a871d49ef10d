"""The seal of a record: a hash of all that it says, by which an edited or exchanged number or text is found."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]

from steerbench.records.identity import fingerprint

FIRST_SEALED = 2
"""The first schema whose records have a seal."""
_KINDS = {"bool": "b", "int64": "i", "double": "f", "string": "O", "large_string": "O"}
"""What pandas makes of a kind of Arrow, for those that records hold."""


def seal(values: Mapping[str, Any], examples: pd.DataFrame) -> str:
    """Return the hash of what a record's JSON holds beside it, and of the values and kinds of its examples' columns.

    It is of values, not of bytes: a table that is packed, or written by another version of Parquet, keeps it.
    """
    return _sealed(values, {str(name): [column.dtype.kind, _plain(column)] for name, column in examples.items()})


def check_seal(values: Mapping[str, Any], examples: pd.DataFrame, table: pa.Table | None = None) -> None:
    """Raise ValueError for a record that is not as it was sealed. Those of the first schema have no seal.

    `table` is the Arrow table that the examples were read from, where there is one: that takes a fifth of the time.
    """
    sealed = "seal" in values or values["schema_version"] >= FIRST_SEALED
    if sealed and values.get("seal") != (seal(values, examples) if table is None else seal_of(values, table, examples)):
        raise ValueError("it was edited, or its examples were: the seal does not hold")


def seal_of(values: Mapping[str, Any], table: pa.Table, examples: pd.DataFrame) -> str:
    """Return `seal(values, examples)` of examples that are `table.to_pandas()`, from what Arrow holds."""
    found = {name: _from_arrow(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    kinds = {name: dtype.kind for name, dtype in examples.dtypes.items()}
    told = {name: column[0] for name, column in found.items() if column is not None}
    return _sealed(values, found) if told == kinds and len(kinds) == examples.shape[1] else seal(values, examples)


def _from_arrow(column: pa.ChunkedArray) -> list[Any] | None:
    """Return a column as `seal` has it, of the kinds that records hold; None for others, which pandas converts."""
    kind = _KINDS.get(str(column.type))
    if kind is None or (column.null_count and kind in "bi"):  # which makes numbers, or objects, of whole numbers
        return None
    plain: list[Any] = column.to_pylist() if kind in "Ob" else column.to_numpy().tolist()
    if kind == "f":
        plain = [None if value != value else value for value in plain]  # noqa: PLR0124
    return [kind, plain]


def _sealed(values: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    return fingerprint({"record": {k: v for k, v in values.items() if k != "seal"}, "examples": columns})


def _plain(column: pd.Series) -> list[Any]:
    plain: list[Any] = column.tolist()
    missing = column.isna().to_numpy()  # ten times as fast as pandas' `where`, and done for every column that is read
    return [None if gone else value for value, gone in zip(plain, missing, strict=True)] if missing.any() else plain
