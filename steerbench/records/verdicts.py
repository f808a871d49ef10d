"""Verdicts on claims of the field, from records alone: what a paper says, what was measured, and what that decides."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from steerbench.errors import SteerbenchError, suggest
from steerbench.records.columns import COLUMNS
from steerbench.records.damage import LeftOut
from steerbench.records.markdown import table_line
from steerbench.records.paired import DERIVED, Pair, pairs
from steerbench.records.power import smallest_difference
from steerbench.records.record import METRICS, Record
from steerbench.records.statistics import Gaps, Interval, claim_p_values, holm, intervals, p_values
from steerbench.records.store import records_in

Says = Literal["higher", "lower", "equal"]
HOLDS, FAILS, OPEN, NOT_MEASURED = "holds", "does not hold", "cannot tell", "not measured"
LEVEL = 0.05
START, END = "<!-- verdicts: written by steerbench verdicts --markdown -->", "<!-- end of verdicts -->"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim: that a method has a higher or lower metric than another, or the same."""

    claim: str
    """The sentence."""
    source: str
    """The paper, and its number."""
    study: str
    """The folder of the records that decide it, beside the file of the claims."""
    first: str
    """A method, as the leaderboard names it."""
    second: str = "unsteered"
    metric: str = "reward"
    says: Says = "higher"
    """How the first is said to be beside the second."""
    value: float = 0.0
    """What the difference is said to be above, below or equal to; for `anti_steerable` a share of the questions."""
    margin: float = 0.0
    """The smallest difference that matters, in units of the metric: that there is none so large refutes the claim."""


class Verdict(NamedTuple):
    """What the records of one task say of a claim."""

    claim: Claim
    verdict: str
    task: str = ""
    model: str = ""
    n_examples: int = 0
    n_seeds: int = 0
    difference: Interval = Interval(nan, None, None)
    """First minus second, with its 95 % interval."""
    smallest: float | None = None
    """The true difference that so many prompts and seeds would find in four of five studies."""


def read_claims(path: Path) -> list[Claim]:
    """Read the claims of a TOML file, each a `[[claim]]`. Raises SteerbenchError that says which is wrong, and how."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("claim", [])
    except OSError as error:
        raise SteerbenchError(f"cannot read {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SteerbenchError(f"cannot read {path}: {error}.") from error
    if not entries:
        raise SteerbenchError(f"{path} has no claims; each begins with a line [[claim]].")
    return [_claim(entry, f"{path}, claim {i}") for i, entry in enumerate(entries, 1)]


def _claim(entry: Mapping[str, Any], where: str) -> Claim:
    known = {field.name: field for field in fields(Claim)}
    for name, value in entry.items():
        if name not in known:
            raise SteerbenchError(f"{where}: {suggest('key', name, list(known))}")
        if not isinstance(value, (int, float) if name in ("margin", "value") else str):
            raise SteerbenchError(f"{where}: {name} is {value!r}, of the wrong kind.")
    if missing := [name for name in ("claim", "source", "study", "first") if not entry.get(name)]:
        raise SteerbenchError(f"{where}: {missing[0]} is missing.")
    claim = Claim(**entry)
    metrics, ways = [*METRICS, *DERIVED], list(get_args(Says))
    for name, found, names in (("metric", claim.metric, metrics), ("says", claim.says, ways)):
        if found not in names:
            raise SteerbenchError(f"{where}: {suggest(name, found, names)}")
    if not isfinite(claim.value):
        raise SteerbenchError(f"{where}: the value must be a number.")
    if not 0 <= claim.margin < inf or (claim.says == "equal" and not claim.margin):
        raise SteerbenchError(f"{where}: the margin must be a number above 0 for what is equal, and not below it else.")
    return claim


def decided(path: Path, left_out: LeftOut | None = None) -> list[Verdict]:
    """Return the verdicts on the claims of a file, by the records in the folders beside it that they name."""
    claims = read_claims(path)
    studies = {name: records_in([path.parent / name], left_out) for name in sorted({one.study for one in claims})}
    return verdicts(claims, studies)


def verdicts(claims: Sequence[Claim], studies: Mapping[str, Sequence[Record]]) -> list[Verdict]:
    """Return what the records of each study say of the claims on it, by claim and task, in their order.

    A claim of more or less *holds* where the 95 % interval of the difference lies on its side of zero, or of the value
    that it names, and its p-value stays at most 0.05 after Holm's correction for all differences that claims are about;
    it *does not hold* where no difference of more than the `margin` on that side lies in the interval. Two are *equal*
    where the interval lies within the margin, and not where it lies outside. Everything else *cannot be told* from
    these records, and so is what one seed gave of a method whose fit is random.
    A method without records was *not measured*.
    Raises SteerbenchError if a study lacks the metric of a claim, or records were not measured alike.
    """
    measured = [(claim, *found) for claim in claims for found in _differences(claim, studies[claim.study])]
    gaps = [_beyond(gap, claim.value) for claim, *_, gap in measured]
    p = [claim_p_values([gap], p_values([gap]))[0] if gap.testable else 1.0 for gap in gaps]
    sure = [value <= LEVEL for value in holm(p)]
    told = [_verdict(*one, sure=known) for one, known in zip(measured, sure, strict=True)]
    missing = [Verdict(claim, NOT_MEASURED) for claim in claims if claim not in {one.claim for one in told}]
    return sorted([*told, *missing], key=lambda one: claims.index(one.claim))


def _differences(claim: Claim, records: Sequence[Record]) -> Iterator[tuple[str, Pair, Gaps]]:
    """Yield the tasks that a study has both methods on."""
    if not {claim.first, claim.second} <= {record.method for record in records}:
        return
    for task, pair in pairs(records, claim.first, claim.second).items():
        gap = pair.difference(claim.metric)
        if gap is None:
            raise SteerbenchError(f"the records in {claim.study} have no {claim.metric} for {claim.claim!r}.")
        yield task, pair, gap


def _verdict(claim: Claim, task: str, pair: Pair, gap: Gaps, *, sure: bool) -> Verdict:
    difference, first = intervals([gap])[0], pair.first[0]
    told = _decided(claim, difference, sure) if gap.testable and difference.low is not None else OPEN
    n = len(set(gap.ids))
    return Verdict(claim, told, task, first.labels["model"], n, len(pair.first), difference, smallest_difference(gap))


def _beyond(gap: Gaps, value: float) -> Gaps:
    return gap._replace(values=gap.values - value, by_seed=gap.by_seed - value, of_seeds=gap.of_seeds - value)


def _decided(claim: Claim, difference: Interval, sure: bool) -> str:
    low, high = float(difference.low or 0.0) - claim.value, float(difference.high or 0.0) - claim.value
    if claim.says == "lower":
        low, high = -high, -low
    if claim.says == "equal":
        within, outside = max(-low, high) <= claim.margin, low > claim.margin or high < -claim.margin
        return HOLDS if within else FAILS if outside else OPEN
    return HOLDS if low > 0 and sure else FAILS if high <= claim.margin else OPEN


def markdown(found: Sequence[Verdict]) -> str:
    """Return a table of verdicts, a line for each claim and task."""
    heads = ("claim", "says", "measured", "prompts × seeds", "difference", "could be seen", "verdict")
    lines = [table_line(heads), table_line([":--"] * len(heads))]
    return "\n".join([*lines, *(table_line(_cells(one)) for one in found)])


def _cells(one: Verdict) -> list[str]:
    claim, column = one.claim, COLUMNS[one.claim.metric]
    what = f"{column.title} of `{claim.first}` beside `{claim.second}`"
    if one.verdict == NOT_MEASURED:
        return [claim.claim, claim.source, what, "", "", "", NOT_MEASURED]
    mean, low, high = one.difference
    ends = "" if low is None or high is None else f" ({low:z.{column.digits}f} to {high:z.{column.digits}f})"
    return [
        claim.claim,
        claim.source,
        f"{what} on {one.task}, {one.model}",
        f"{one.n_examples} × {one.n_seeds}",
        f"{mean:+z.{column.digits}f}{ends}",
        "" if one.smallest is None else f"{one.smallest:.{column.digits}f}",
        f"**{one.verdict}**",
    ]
