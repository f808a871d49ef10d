"""Judgements: the win rate of each method by a judge, on the same prompts for all of them.

Each pair of responses is shown in both orders, because judges have a favourite place. It scores 1 for a win, 1/2 for a
tie and 0 for a loss, averaged over the two orders, so a verdict that turns with the order counts one half.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, Final, NamedTuple

import pandas as pd

from steerbench.errors import SteerbenchError, suggest
from steerbench.judge import TEMPLATE_HASH, Question, Replies, Verdict
from steerbench.plugins.spec import UNSTEERED
from steerbench.records.identity import fingerprint
from steerbench.records.leaderboard import by_task, rows_of
from steerbench.records.record import Record
from steerbench.records.statistics import paired_interval, wilson

WIN_RATES: Final = "win_rates.csv"


class Pair(NamedTuple):
    """Two responses to one test prompt: a method's, and the one it is held against, of the same seed and sample."""

    task: str
    method: str
    protocol: str
    id: str
    group: str
    prompt: str
    response: str
    other: str

    @property
    def questions(self) -> tuple[Question, ...]:
        """Both orders, the method's response first and second; none if the responses are equal, which is a tie."""
        if self.response == self.other:
            return ()
        return Question(self.prompt, self.response, self.other), Question(self.prompt, self.other, self.response)


def pairs(
    records: Sequence[Record], *, against: str = UNSTEERED, n: int = 100, seed: int = 0, methods: Collection[str] = ()
) -> list[Pair]:
    """Return the pairs to judge: `n` test prompts of each task, the same for every method, with all seeds and samples.

    A smaller `n` draws a part of what a larger one draws. `against` and `methods` name rows as the leaderboard does; no
    methods means all. Raises SteerbenchError for unknown names, for records of one task that were not measured alike,
    and for a seed of a method without a record to hold it against.
    """
    variants = {task: rows_of(group) for task, group in by_task(records).items()}
    known = {name for rows in variants.values() for label, group in rows.items() for name in (label, group[0].method)}
    if against == UNSTEERED and against not in known:
        raise SteerbenchError(f"these folders hold no record of {against!r}; measure it, or give --against METHOD.")
    for name in {against, *methods}:
        if name not in known:
            raise SteerbenchError(suggest("method", name, sorted(known)))
    found = [p for task, rows in variants.items() for p in _of_task(task, rows, against, n, seed, methods)]
    if not found:
        raise SteerbenchError(f"there is no method to hold against {against!r}; give records of one, or another name.")
    return found


def _of_task(
    task: str, rows: Mapping[str, list[Record]], against: str, n: int, seed: int, methods: Collection[str]
) -> Iterator[Pair]:
    references = _newest(r for label, group in rows.items() for r in group if against in (label, r.method))
    texts = {r.seed: _texts(r) for r in references.values()}
    for label, group in rows.items():
        names = {label, group[0].method}
        if against in names or (methods and not names & {*methods}):
            continue
        for record in group:
            if record.seed not in texts:
                raise SteerbenchError(
                    f"{record.folder_name} has no {against!r} of its task and seed beside it; measure that too, or "
                    f"leave the record out."
                )
            yield from _beside(task, label, record, texts[record.seed], n, seed)


def _newest(records: Iterable[Record]) -> dict[int, Record]:
    """Return one record for each seed, the newest where there are two, of two sources."""
    return {record.seed: record for record in sorted(records, key=lambda r: (r.created, r.identity))}


Texts = dict[tuple[str, int], Any]
"""Rows with `group`, `prompt` and `response` by id and number of the response."""


def _texts(record: Record) -> Texts:
    table = record.examples
    if missing := {"id", "group", "prompt", "response"} - {*table}:
        raise SteerbenchError(f"the examples of {record.folder_name} have no {min(missing)}; measure it again.")
    table = table.sort_values(["id", *(["sample"] if "sample" in table else [])], kind="stable")
    numbers = table.groupby("id").cumcount()
    return dict(zip(zip(table["id"], numbers, strict=True), table.itertuples(index=False), strict=True))


def _beside(task: str, label: str, record: Record, others: Texts, n: int, seed: int) -> Iterator[Pair]:
    texts = _texts(record)
    if texts.keys() != others.keys():
        raise SteerbenchError(
            f"{record.folder_name} holds other test prompts than the record beside it, of the same protocol. One of "
            f"them is damaged; delete its folder and run again."
        )
    drawn = {*sorted({id_ for id_, _ in texts}, key=lambda id_: fingerprint([seed, id_]))[:n]}
    protocol = fingerprint(record.protocol)[:12]
    for (id_, number), row in texts.items():
        if id_ in drawn:
            other = others[id_, number].response
            yield Pair(task, label, protocol, id_, row.group, row.prompt, row.response, other)


COLUMNS: Final = (
    "method",
    "task",
    "win_rate",
    "low",
    "high",
    "n",
    "consistency",
    "failed",
    "first",
    "identical",
    "pairs",
    "interval",
    "against",
    "judge_model",
    "template",
    "protocol",
    "seed",
)
_RATES = ("win_rate", "low", "high", "consistency", "first")


class _Judged(NamedTuple):
    """A pair with its verdicts: on the method's response first, and second. Empty for equal responses."""

    pair: Pair
    verdicts: tuple[Verdict | None, ...]

    @property
    def score(self) -> float | None:
        """What the method gets; None if a verdict is missing."""
        if None in self.verdicts:
            return None
        return fmean(_POINTS[i][v] for i, v in enumerate(self.verdicts) if v) if self.verdicts else 0.5

    @property
    def agree(self) -> bool:
        """Whether both orders give the method the same."""
        first, second = self.verdicts
        return first is not None and second is not None and _POINTS[0][first] == _POINTS[1][second]


_POINTS: Final[tuple[dict[Verdict, float], ...]] = ({"A": 1.0, "B": 0.0, "C": 0.5}, {"A": 0.0, "B": 1.0, "C": 0.5})
"""By the place of the method's response."""


def win_rates(
    pairs: Sequence[Pair], model: str, replies: Replies, *, against: str = UNSTEERED, seed: int = 0
) -> pd.DataFrame:
    """Return one row per task and method, best first.

    - `win_rate`: mean over `n` prompts of what the method gets; seeds and samples are averaged within a prompt
    - `low`, `high`: 95 %, Wilson's; where prompts come in clusters, a bootstrap over those (`interval` says which);
      empty with one cluster alone
    - `consistency`: share of the pairs shown on which both orders agree
    - `first`: share of the response shown first among the verdicts that are no tie; 0.5 without a favourite place
    - `failed`: pairs without both verdicts, left out everywhere
    - `identical`: pairs of equal responses, ties without being shown
    - `against`, `judge_model`, `template`, `protocol`, `seed`: what was judged, and how
    """
    identity = {"against": against, "judge_model": model, "template": TEMPLATE_HASH, "seed": seed}
    groups: dict[tuple[str, str], list[_Judged]] = defaultdict(list)
    for pair in pairs:
        verdicts = tuple(replies.verdict(question.key(model)) for question in pair.questions)
        groups[pair.task, pair.method].append(_Judged(pair, verdicts))
    rows = [
        {"method": method, "task": task, **_row(judged), "protocol": judged[0].pair.protocol, **identity}
        for (task, method), judged in groups.items()
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(_RATES, float))
    return table.sort_values(["task", "win_rate", "method"], ascending=[True, False, True], ignore_index=True)


def _row(judged: Sequence[_Judged]) -> dict[str, object]:
    scored = [one for one in judged if one.score is not None]
    shown = [one for one in scored if one.verdicts]
    places = [v for one in shown for v in one.verdicts if v != "C"]
    return {
        **_rate(scored),
        "consistency": fmean(one.agree for one in shown) if shown else None,
        "failed": len(judged) - len(scored),
        "first": fmean(v == "A" for v in places) if places else None,
        "identical": len(scored) - len(shown),
        "pairs": len(scored),
    }


def _rate(scored: Sequence[_Judged]) -> dict[str, object]:
    """Return the win rate with its interval. A prompt counts once, whatever its number of seeds and samples."""
    if not scored:
        return {"win_rate": None, "low": None, "high": None, "n": 0, "interval": ""}
    table = pd.DataFrame([(one.pair.id, one.pair.group, one.score) for one in scored], columns=["id", "group", "score"])
    table = table.groupby("id", as_index=False).agg({"group": "first", "score": "mean"})
    rate, n, clusters = float(table["score"].mean()), len(table), table["group"].nunique()
    low, high, name = _interval(table, rate, clusters)
    return {"win_rate": rate, "low": low, "high": high, "n": n, "interval": name}


def _interval(table: pd.DataFrame, rate: float, clusters: int) -> tuple[float | None, float | None, str]:
    if clusters == 1 and len(table) > 1:  # a single cluster cannot vary
        return None, None, ""
    if clusters < len(table):
        _, low, high = paired_interval([table], [table.assign(score=0.0)], "score")
        if low != high:
            return low, high, "clusters"
    return *wilson(rate, clusters), "wilson"  # of clusters that all agree, each counts as one prompt
