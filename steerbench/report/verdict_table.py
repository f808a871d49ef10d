"""Verdicts on claims as cells: what is said, what was measured of it, and what that decides."""

from collections.abc import Sequence

from steerbench.records.columns import COLUMNS
from steerbench.records.verdicts import NOT_MEASURED, Verdict
from steerbench.report.details import Table

_HEADS = ["claim", "verdict", "source", "difference", "could be seen", "measured", "prompts × seeds"]


def verdict_table(found: Sequence[Verdict]) -> Table:
    """Return a row for each claim and task; empty where there are no claims."""
    return [_HEADS, *map(_cells, found)] if found else []


def _cells(one: Verdict) -> list[str]:
    claim, column = one.claim, COLUMNS[one.claim.metric]
    what = f"{column.title} of {claim.first} beside {claim.second}"
    if one.verdict == NOT_MEASURED:
        return [claim.claim, NOT_MEASURED, claim.source, "–", "–", what, "–"]
    mean, low, high = one.difference
    ends = "" if low is None or high is None else f" ({low:z.{column.digits}f} to {high:z.{column.digits}f})"
    return [
        claim.claim,
        one.verdict,
        claim.source,
        f"{mean:+z.{column.digits}f}{ends}",
        "–" if one.smallest is None else f"{one.smallest:.{column.digits}f}",
        f"{what} on {one.task}, {one.model}",
        f"{one.n_examples} × {one.n_seeds}",
    ]
