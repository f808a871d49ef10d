"""What a person asks first of a group: what works, at what price, and how sure that is, in plain sentences."""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from steerbench.records.columns import COLUMNS
from steerbench.records.ranks import LEVEL
from steerbench.records.side_effects import FAR_KL
from steerbench.report.groups import Group, Row

SCORES = ("gold_gain", "held_out_reward_gain", "reward_gain", "accuracy_gain", "mc1_gain", "mc2_gain")
"""Gains by how much they count: the truth, then what no method has seen, then the guide."""
GUIDE = "reward_gain"
_UNSEEN = SCORES[:2]
_MOST = 6
"""Methods that a sentence names."""


class Judged(StrEnum):
    """What the records say of a method beside the unsteered model."""

    BETTER = "better"
    WORSE = "worse"
    OPEN = "not sure"
    ONE_SEED = "one seed"


class Told(NamedTuple):
    """A method, and what a sentence says of it."""

    method: str
    text: str


class Sentence(NamedTuple):
    """A sentence: what it says, of which methods, and of how many more."""

    lead: str
    methods: list[Told]
    more: int = 0


def counting_score(group: Group) -> str | None:
    """Return the gain that counts for a group, as `SCORES` has them in order; None where no method has any."""
    return next((column for column in SCORES if _with(group, column)), None)


def ranked(group: Group, column: str) -> list[Row]:
    """Return the methods that have a gain, the highest first."""
    return sorted(_with(group, column), key=lambda row: (-_gain(row, column), row.method))


def judged(row: Row, column: str) -> Judged:
    """Tell whether a method surely has another score than the unsteered model.

    Surely: the p-value is at most 5 % after Holm's correction for the number of methods, and the 95 % interval lies on
    one side of zero. Nothing is sure of a method with one seed where another might have given another steering.
    """
    if row.number("fits") is None:
        return Judged.ONE_SEED
    p, low, high = (row.number(f"{column}_{end}") for end in ("p_holm", "low", "high"))
    if p is None or low is None or high is None or p > LEVEL:
        return Judged.OPEN
    return Judged.BETTER if low > 0 else Judged.WORSE if high < 0 else Judged.OPEN


def sentences(group: Group) -> list[Sentence]:
    """Return what the records of a group say, the answer first; nothing where no method has a gain."""
    column = counting_score(group)
    if column is None:
        return []
    rows = ranked(group, column)
    better = [row for row in rows if judged(row, column) is Judged.BETTER]
    opening = _sure(better, column) if better else _nothing_sure(rows, column)
    return [*opening, *_not_held_up(rows, column), *_others(rows, column), *_far(rows)]


def score_name(column: str) -> str:
    """Return what a gain is a gain of."""
    return {"held_out_reward_gain": "held-out reward"}.get(column, COLUMNS[column].title.removesuffix(" gain"))


def _with(group: Group, column: str) -> list[Row]:
    return [row for row in group.rows if not row.is_unsteered and row.number(column) is not None]


def _gain(row: Row, column: str) -> float:
    return row.number(column) or 0.0


def _sure(better: Sequence[Row], column: str) -> Iterator[Sentence]:
    """Yield what is surely better, the highest of it with its price, what may be as good, and the fastest."""
    title, best = COLUMNS[column].title, better[0]
    timed = [row for row in better if row.number("decode_ratio") is not None]
    fastest = min(timed, key=lambda row: row.number("decode_ratio") or 0.0, default=best)
    yield _about("Surely better than the unsteered model:", better, lambda row: _signed(row, column))
    fast = ", and the fastest" if fastest is best and len(timed) > 1 else ""
    lead = f"Highest {title} of them{fast}:" if len(better) > 1 else f"Its {title} and price:"
    yield Sentence(lead, [Told(best.method, _priced(best, column))])
    near = [row for row in better[1:] if (row.number(f"{column}_high") or 0.0) >= (best.number(f"{column}_low") or 0.0)]
    if near:
        yield _about("The intervals of these overlap with its own:", near, lambda row: _timed(row, column))
    if fastest is not best:
        yield Sentence("Fastest of them:", [Told(fastest.method, _priced(fastest, column))])


def _nothing_sure(rows: Sequence[Row], column: str) -> Iterator[Sentence]:
    yield Sentence(f"No method is surely better than the unsteered model{_why(rows, column)}.", [])
    if _gain(rows[0], column) > 0:
        best = Told(rows[0].method, _priced(rows[0], column))
        yield Sentence(f"Highest {COLUMNS[column].title} measured, and not sure:", [best])


def _why(rows: Sequence[Row], column: str) -> str:
    if all(judged(row, column) is Judged.ONE_SEED for row in rows):
        return ": each was measured with one seed alone"
    if all(row.number(f"{column}_p_holm") is None for row in rows):
        return ": there are intervals, but no test that counts how many methods were tried"
    return ""


def _not_held_up(rows: Sequence[Row], column: str) -> Iterator[Sentence]:
    """Yield gains on the guide that the score that counts does not bear out."""
    if column not in _UNSEEN:
        return
    name = score_name(column)
    for verdict, lead in (
        (Judged.WORSE, f"Gains that do not hold up, as the guiding reward surely rose and {name} surely fell:"),
        (Judged.OPEN, f"Gains that may not hold up, as the guiding reward surely rose and {name} not surely:"),
    ):
        found = [row for row in rows if judged(row, column) is verdict and _pleased(row)]
        if found:
            yield _about(lead, found, lambda row: f"guide {_signed(row, GUIDE)}, {name} {_signed(row, column)}")


def _others(rows: Sequence[Row], column: str) -> Iterator[Sentence]:
    told = {kind: [row for row in rows if judged(row, column) is kind] for kind in Judged}
    pleased = column in _UNSEEN
    worse, unsure = ([r for r in told[k] if not (pleased and _pleased(r))] for k in (Judged.WORSE, Judged.OPEN))
    if worse:
        yield _about("Surely worse than the unsteered model:", worse, lambda row: _signed(row, column))
    if unsure and len(unsure) < len(rows):
        yield Sentence(f"Not sure, either way: {_counted(len(unsure))}.", [])
    if told[Judged.ONE_SEED] and len(told[Judged.ONE_SEED]) < len(rows):
        yield Sentence(f"Measured with one seed alone, so never sure: {_counted(len(told[Judged.ONE_SEED]))}.", [])


def _far(rows: Sequence[Row]) -> Iterator[Sentence]:
    found = [row for row in rows if (row.number("kl") or 0.0) > FAR_KL]
    if found:
        lead = f"More than {FAR_KL:g} nat per token from the unsteered model, mostly other tokens:"
        yield _about(lead, found, lambda row: f"{row.number('kl'):.2f}")


def _pleased(row: Row) -> bool:
    return judged(row, GUIDE) is Judged.BETTER


def _about(lead: str, rows: Sequence[Row], text: Callable[[Row], str]) -> Sentence:
    return Sentence(lead, [Told(row.method, text(row)) for row in rows[:_MOST]], max(0, len(rows) - _MOST))


def _counted(n: int) -> str:
    return "1 method" if n == 1 else f"{n} methods"


def _signed(row: Row, column: str) -> str:
    return f"{_gain(row, column):+z.{COLUMNS[column].digits}f}"


def _timed(row: Row, column: str) -> str:
    """Return a gain and the time of decoding: what else there is to say stands in the table below."""
    time = row.number("decode_ratio")
    return _signed(row, column) + ("" if time is None else f", {time:.2f} × the time")


def _priced(row: Row, column: str) -> str:
    """Return a gain with its interval, and what the method costs."""
    low, high = row.number(f"{column}_low"), row.number(f"{column}_high")
    digits = COLUMNS[column].digits
    ends = "" if low is None or high is None else f" ({low:z.{digits}f} to {high:z.{digits}f})"
    time, kl = row.number("decode_ratio"), row.number("kl")
    price = ["" if time is None else f"{time:.2f} × the time", "" if kl is None else f"KL {kl:.3f} per token"]
    return ", ".join(told for told in (_signed(row, column) + ends, *price) if told)
