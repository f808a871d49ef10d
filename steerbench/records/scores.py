"""The columns of a record's examples as arrays, each made once: pandas takes longer to find one than its sum takes."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from steerbench.errors import SteerbenchError
from steerbench.records.record import Record


class Scores:
    """A table of examples, of which numbers are asked for again and again. The table must not change meanwhile."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        self._names = frozenset(table.columns)
        self._numbers: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self.table)

    def numbers(self, name: str) -> Any:
        """Return a column, (responses,) float64; None where it is not there, or not of numbers."""
        if name not in self._numbers:
            column = self.table[name] if name in self else None
            self._numbers[name] = _floats(column) if is_numeric_dtype(column) else None
        return self._numbers[name]

    def has(self, *names: str) -> bool:
        """Tell whether there are columns with a number for every response."""
        columns = [self.numbers(name) for name in names]
        return all(column is not None and not np.isnan(column).any() for column in columns)

    @cached_property
    def prompts(self) -> tuple[list[Any] | None, list[Any] | None]:
        """The ids of the prompts, and the numbers of the samples, where the table has them."""
        ids, samples = (self.table[name].tolist() if name in self else None for name in ("id", "sample"))
        return ids, samples


def _floats(column: pd.Series) -> Any:
    plain = isinstance(column.dtype, np.dtype)
    return column.to_numpy(float) if plain else column.to_numpy(float, na_value=np.nan)


Table: TypeAlias = pd.DataFrame | Scores
"""Examples, or what was made of them already."""


class Scored(Record):
    """A record whose columns are made once, for as long as its examples do not change."""

    @classmethod
    def of(cls, record: Record) -> "Scored":
        """Return a record with the same examples."""
        return record if isinstance(record, cls) else cls(**vars(record))

    @cached_property
    def scores(self) -> Scores:
        """Its examples."""
        return Scores(self.examples)


def scores_of(found: Table | Record) -> Scores:
    """Return the columns of a table, or of a record, as arrays: those that were made before, where there are some."""
    if isinstance(found, Record):
        return found.scores if isinstance(found, Scored) else Scores(found.examples)
    return found if isinstance(found, Scores) else Scores(found)


def by_id(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table by the ids of their prompts, and by sample."""
    return table.sort_values(["id", *(["sample"] if "sample" in table else [])], kind="stable")


def aligned(found: Table, wanted: Table) -> Scores:
    """Return the rows of a table in the order of another one, by prompt and by number of the sample.

    Its own index is of no account. Raises SteerbenchError if the tables do not hold the same prompts.
    """
    table, like = scores_of(found), scores_of(wanted)
    if table is like or table.prompts == like.prompts:  # nearly always, and far cheaper than sorting
        return table
    rows, others = by_id(table.table), by_id(like.table.reset_index(drop=True))
    check_same(list(rows["id"]), list(others["id"]))
    return Scores(rows.set_axis(others.index).sort_index())


def check_same(ids: Sequence[str], others: Sequence[str]) -> None:
    """Raise SteerbenchError that names a prompt which is not as often in one list as in the other."""
    if ids != others:
        alone = min((Counter(ids) - Counter(others)) + (Counter(others) - Counter(ids)))
        raise SteerbenchError(
            f"two records of one protocol hold different test prompts: {alone!r} is not in both as often. "
            f"One of them is damaged; delete its folder and run again."
        )


def n_clusters(record: Record) -> int:
    """Return how many posts or openings the test prompts are about."""
    table = record.examples
    return int(table["group"].nunique()) if "group" in table else int(record.protocol["n_examples"])
