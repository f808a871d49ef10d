"""Whether methods come in the same order in two tables: on two tasks, models, or strengths.

Spearman's rank correlation of the gains over the unsteered model, over the methods that both tables have. Its interval
is over methods, as if they were drawn from many, and knows nothing of the noise in each gain, which pulls the
correlation toward zero.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from steerbench.errors import SteerbenchError
from steerbench.records.across import gains_of
from steerbench.records.agreement import of_ranks
from steerbench.records.columns import COLUMNS
from steerbench.records.damage import LeftOut
from steerbench.records.markdown import table_line
from steerbench.records.statistics import Interval

START, END = "<!-- agreement: written by steerbench agree --markdown -->", "<!-- end of agreement -->"
_APART = 3
"""Methods that are named because their places differ most."""


class OrderAgreement(NamedTuple):
    """How two tables agree."""

    first: str
    second: str
    methods: int
    correlation: Interval | None
    """None where fewer than two methods, or no two different gains, are in both."""
    apart: tuple[tuple[str, float, float], ...]
    """The methods whose places differ most, with the place in the first and in the second table; 1 is the best."""


def order_agreements(folders: Sequence[Path], metric: str, left_out: LeftOut | None = None) -> list[OrderAgreement]:
    """Return how each two tables agree, of all tasks of all folders; each folder is a study of its own.

    Raises SteerbenchError for a metric that is no gain's, and where there are fewer than two tables with it.
    """
    gains = {
        f"{name}, {task}": rows.set_index("method")[f"{metric}_gain"]
        for name, table in gains_of(folders, metric, left_out).items()
        for task, rows in table.groupby("task", sort=True)
    }
    if len(gains) < 2:
        raise SteerbenchError(
            f"it takes two tables to agree, and {len(gains)} of these have gains of {metric}; give folders of two "
            f"studies, or of two tasks, or another --metric."
        )
    return [agreement_of(*first, *second) for first, second in combinations(gains.items(), 2)]


def agreement_of(first: str, ones: pd.Series, second: str, others: pd.Series) -> OrderAgreement:
    """Return how the gains of two tables agree, each by method."""
    both = pd.DataFrame({"one": ones, "other": others}).dropna()
    places = both.rank(ascending=False)
    distance = (places["one"] - places["other"]).abs().sort_values(ascending=False, kind="stable")
    apart = [name for name in distance.index[:_APART] if distance[name] > 0]
    told = tuple((str(name), float(places.loc[name, "one"]), float(places.loc[name, "other"])) for name in apart)
    correlation = places["one"].corr(places["other"])
    known = None if pd.isna(correlation) else of_ranks(float(correlation), len(both))
    return OrderAgreement(first, second, len(both), known, told)


def markdown(found: Sequence[OrderAgreement], metric: str) -> str:
    """Return a table with a line for each two tables."""
    heads = ["first", "second", "methods", f"rank correlation of {COLUMNS[metric].title}", "furthest apart (places)"]
    lines = [table_line(heads), table_line([":--", ":--", "--:", "--:", ":--"])]
    for one in found:
        apart = ", ".join(f"`{name}` ({place:g}, {other:g})" for name, place, other in one.apart)
        lines.append(table_line([one.first, one.second, str(one.methods), shown(one.correlation), apart or "–"]))
    return "\n".join(lines)


def shown(value: Interval | None) -> str:
    """Return a correlation with its interval as text."""
    if value is None:
        return "–"
    ends = "" if value.low is None else f" ({value.low:.2f} to {value.high:.2f})"
    return f"{value.mean:.2f}{ends}"
