"""The leaderboard: a table made from records alone, which ranks only what was measured alike."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pandas as pd

from steerbench import testbed
from steerbench.errors import SteerbenchError
from steerbench.files import write_asked
from steerbench.plugins.spec import UNSTEERED
from steerbench.records.choice_gains import choice_gains
from steerbench.records.columns import GAIN_COLUMNS, GAIN_ENDS, GAINS, LATENCY, RANKED_BY, RATES
from steerbench.records.comparisons import COMPARISONS, compared, comparisons
from steerbench.records.identity import Difference, differences, fingerprint
from steerbench.records.ranks import ranks_of
from steerbench.records.record import METRICS, Record
from steerbench.records.scores import Scored, n_clusters, scores_of
from steerbench.records.search_range import ends_chosen
from steerbench.records.side_effects import side_effects
from steerbench.records.statistics import (
    Gaps,
    Interval,
    Order,
    claim_p_values,
    gaps,
    holm,
    intervals,
    order_of,
    p_values,
    spread,
    wilson,
)

_TOLD = 5
"""Differences between two protocols that an error names."""


def leaderboard(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row per task and method, in order of rank, then reward, within a task; means over seeds.

    `rank` is 1 + the number of methods that are surely better: whose reward on the same prompts is higher, or without a
    reward the next of `RANKED_BY`, by a test corrected for the number of pairs (Holm, 5 %). Two methods of different
    ranks may still not be told apart from each other. A method without all the protocol's seeds has none. Gains over
    the unsteered model have 95 % intervals,
    p-values, alone and corrected for the number of methods in the task (Holm), and standard deviations between fits and
    between samples: see `steerbench.records.statistics`. Where seeds gave a method different steerings, both count them
    as drawn; where there is one seed, and another may have given another steering, there is no p-value. All are empty
    where a seed of the method has no record of the unsteered model beside it; so are the win rates against that
    model, unless the records keep them (`steerbench.records.comparisons`). Raises SteerbenchError that names
    the field in which two protocols of one task differ, and if records of one protocol hold different prompts.
    """
    groups = by_task(records)
    # not `concat`: a column may be empty in one task, as gold is on real data, and have numbers in another
    table = pd.DataFrame(row for group in groups.values() for row in _ranked(group))
    return table.astype({"rank": "Int64", "fits": "Int64"}).copy()  # else each column lies in a block of its own


def method_gaps(records: Sequence[Record], metric: str) -> dict[tuple[str, str], Gaps]:
    """Return by task and name in the leaderboard how far each method is from the unsteered model, prompt by prompt.

    The metric may be a comparison, such as `win_rate`. Left out is what has no such metric, or no unsteered record
    beside each of its seeds. Raises as `leaderboard`.
    """
    found: dict[tuple[str, str], Gaps] = {}
    for task, group in by_task(records).items():
        beside = _unsteered(group)
        told = [Scored.of(replace(r, examples=compared(r, beside.get(r.seed)))) for r in group]
        over = _over_unsteered(rows_of(told), _unsteered(told), metric, {})
        found |= {(task, name): gap for name, gap in over.items()}
    return found


def fits_of(records: Sequence[Record]) -> int | None:
    """Return how many steerings the seeds of a row gave; None for one seed, where another may have given another."""
    if len(records) > 1 or records[0].method == UNSTEERED:
        return len({record.steering for record in records})
    return 1 if records[0].report.get("seeded") is False else None


def csv_name(records: Sequence[Record]) -> str:
    """Return the file name of a run's leaderboard, which says when it is a testbed's."""
    is_testbed = any(record.labels["task"].startswith(f"{testbed.NAME}-") for record in records)
    return f"{testbed.NAME}-leaderboard.csv" if is_testbed else "leaderboard.csv"


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a leaderboard: numbers as numbers in full precision, fixed order, `\\n` line ends."""
    write_asked(path, table.to_csv(index=False, lineterminator="\n"))


def by_task(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of each task, each once. Raises SteerbenchError if there is none."""
    records = list({r.identity: r for r in records}.values())  # folders may overlap
    if not records:
        raise SteerbenchError("there are no records; make some with `steerbench run`.")
    return dict(sorted(_by(records, lambda r: r.labels["task"]).items()))


def rows_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of each row of one task's table by its name, in order of their seeds.

    The name is the method as given, with a hash where its source or version differs between rows. Raises
    SteerbenchError if the records were not measured alike.
    """
    _check_comparable(records)
    in_order = sorted(records, key=lambda r: r.seed)  # numbers are added in it, and the last bit depends on that
    variants = _by(in_order, lambda r: fingerprint([r.parts, r.steerbench]))
    for group in variants.values():
        _check_seeds(group)
    methods = [group[0].method for group in variants.values()]
    return {
        group[0].method + (f" #{key[:6]}" if methods.count(group[0].method) > 1 else ""): group
        for key, group in variants.items()
    }


def _ranked(records: Sequence[Record]) -> list[dict[Hashable, object]]:
    rows = rows_of([Scored.of(record) for record in records])
    unsteered = _unsteered([record for group in rows.values() for record in group])
    gains, beside = _gains(rows, unsteered), side_effects(rows, unsteered)
    choices = choice_gains(rows, unsteered, {name: fits_of(group) != 1 for name, group in rows.items()})
    derived = {name: gains[name] | beside[name] | choices[name] for name in rows}
    whole = {name: group for name, group in rows.items() if len(group) == len(records[0].protocol["seeds"])}
    score = _ranking_score(records)
    ranks = ranks_of(over_first(whole, score))
    table = pd.DataFrame(_row(name, ranks.get(name), group, unsteered, derived[name]) for name, group in rows.items())
    # by the score, and not by rank: methods whose few seeds differ share the first, however low they are
    table["whole"] = table["rank"].notna()
    in_order = table.sort_values(["whole", score, "method"], ascending=[False, False, True]).drop(columns="whole")
    found: list[dict[Hashable, object]] = in_order.to_dict("records")
    return found


def _check_comparable(records: Sequence[Record]) -> None:
    first = records[0]
    for other in records[1:]:
        if found := differences(first.protocol, other.protocol):
            told = "; ".join(_told(difference, first, other) for difference in found[:_TOLD])
            told += f"; and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
            raise SteerbenchError(
                f"these records were not measured alike and cannot be ranked together: {told} "
                f"({first.folder_name} and {other.folder_name}). Give folders that hold one protocol per task."
            )


def _check_seeds(group: Sequence[Record]) -> None:
    for one, other in pairwise(group):
        if one.seed == other.seed:
            raise SteerbenchError(
                f"{one.method} was measured twice with seed {one.seed}; delete one of {one.folder_name} and "
                f"{other.folder_name}."
            )


def _told(difference: Difference, first: Record, other: Record) -> str:
    """Return a difference, with readable names where there are some: hashes say little."""
    names = [record.labels.get(difference.field) or "none" for record in (first, other)]
    return (
        f"{difference} ({names[0]} and {names[1]})"
        if set(names) != {"none"} and names[0] != names[1]
        else str(difference)
    )


def _unsteered(records: Sequence[Record]) -> dict[int, Record]:
    """Return the record of the unsteered model for each seed, the newest where there are two, of two sources."""
    found = [record for record in records if record.method == UNSTEERED]
    return {record.seed: record for record in sorted(found, key=lambda r: (r.created, r.identity))}


def _ranking_score(records: Sequence[Record]) -> str:
    there = (name for name in RANKED_BY if any(_has(record, name) for record in records))
    return next(there, RANKED_BY[0])


def over_first(variants: Mapping[str, list[Record]], score: str = "reward") -> dict[str, Gaps]:
    """Return how far the scores of each row are from those of the first one, for the rows that have this score."""
    groups = {
        key: [scores_of(r) for r in group] for key, group in variants.items() if all(_has(r, score) for r in group)
    }
    first = next(iter(groups.values()), [])
    order = order_of(first[0]) if first else None
    return {
        key: gaps(tables, first, score, seeded=fits_of(variants[key]) != 1, order=order)
        for key, tables in groups.items()
    }


def _gains(variants: Mapping[str, list[Record]], unsteered: Mapping[int, Record]) -> dict[str, dict[str, float | None]]:
    """Return the columns of the gains of each variant over the unsteered model, where it can be compared."""
    orders: dict[int, Order] = {}
    found = {
        (name, key): gap for name in GAINS for key, gap in _over_unsteered(variants, unsteered, name, orders).items()
    }
    told = intervals(list(found.values()))  # at once, because resampling is what takes the time
    itself = {key for key, group in variants.items() if all(unsteered.get(r.seed) is r for r in group)}
    tested = {pair: gap for pair, gap in found.items() if gap.testable}
    p = dict(zip(tested, p_values(list(tested.values())), strict=True))
    claims = dict(zip(tested, claim_p_values(list(tested.values()), list(p.values())), strict=True))
    corrected = _corrected({pair: value for pair, value in claims.items() if variants[pair[1]][0].method != UNSTEERED})
    columns: dict[str, dict[str, float | None]] = {key: dict.fromkeys(GAIN_COLUMNS) for key in variants}
    for ((name, key), gap), interval in zip(found.items(), told, strict=True):
        if key in itself:
            columns[key] |= _of_gain(name, Interval(0.0, 0.0, 0.0))
        else:
            sampled = variants[key][0].protocol["temperature"] > 0
            tests = (p.get((name, key)), corrected.get((name, key)))
            columns[key] |= _of_gain(name, (*interval, *tests, *spread(gap.by_seed, sampled=sampled)))
    return columns


def _over_unsteered(
    variants: Mapping[str, list[Record]], unsteered: Mapping[int, Record], name: str, orders: dict[int, Order]
) -> dict[str, Gaps]:
    """Return how far each variant is from the unsteered model by a metric; `orders` keeps its tables' by seed."""
    known = {seed for seed, record in unsteered.items() if _has(record, name)}
    found = {}
    for key, group in variants.items():
        if not all(r.seed in known and _has(r, name) for r in group):
            continue
        beside = [scores_of(unsteered[r.seed]) for r in group]
        if (seed := group[0].seed) not in orders:
            orders[seed] = order_of(beside[0])
        tables = [scores_of(r) for r in group]
        found[key] = gaps(tables, beside, name, seeded=fits_of(group) != 1, order=orders[seed])
    return found


def _of_gain(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    return {f"{name}_gain{end}": value for end, value in zip(GAIN_ENDS, values, strict=False)}


def _corrected(p: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Return p-values corrected for the number of methods, each metric by itself."""
    corrected: dict[tuple[str, str], float] = {}
    for metric in GAINS:
        pairs = [pair for pair in p if pair[0] == metric]
        corrected |= zip(pairs, holm([p[pair] for pair in pairs]), strict=True)
    return corrected


def _has(record: Record | None, name: str) -> bool:
    """Tell whether a record has a number for every prompt, and the groups of the prompts."""
    scores = None if record is None else scores_of(record)
    return scores is not None and "id" in scores and "group" in scores and scores.has(name)


def _matched(records: Sequence[Record]) -> bool | None:
    """Tell whether every seed met the KL that the protocol asks for; None where it asks for none."""
    if records[0].protocol.get("match_kl") is None or records[0].method == UNSTEERED:
        return None
    return all(r.tuning.get("matched", False) for r in records)


def _on_validation(record: Record) -> float | None:
    """Return what the chosen trial gained of the guiding reward on validation; None where nothing was tuned."""
    told = record.tuning
    chosen = [trial for trial in told.get("trials", []) if trial["hyperparameters"] == told.get("chosen")]
    rewards = [scores.get("reward") for scores in (*chosen[:1], told.get("unsteered")) if isinstance(scores, dict)]
    known: list[float] = [reward for reward in rewards if reward is not None]
    return known[0] - known[1] if len(known) == 2 else None


def _rates(metrics: Mapping[str, float | None], n: int) -> dict[str, float | None]:
    """Return Wilson's intervals of shares among `n` clusters of prompts. Seeds and samples make no more of them."""
    ends: dict[str, float | None] = {}
    for name in RATES:
        rate = metrics[name]
        low, high = (None, None) if rate is None else wilson(rate, n)
        ends |= {f"{name}_low": low, f"{name}_high": high}
    return ends


def _compared(records: Sequence[Record], unsteered: Mapping[int, Record]) -> dict[str, float | None]:
    """Return the means of the comparisons over the seeds; None for one that a seed lacks."""
    found = [comparisons(record, unsteered.get(record.seed)) for record in records]
    return {name: fmean(c[name] for c in found) if all(name in c for c in found) else None for name in COMPARISONS}


def _row(
    label: str,
    rank: int | None,
    records: Sequence[Record],
    unsteered: Mapping[int, Record],
    derived: Mapping[str, float | None],
) -> dict[str, object]:
    first = records[0]
    metrics = {name: _mean(r.metrics.get(name) for r in records) for name in METRICS} | _compared(records, unsteered)
    return {
        "task": first.labels["task"],
        "rank": rank,
        "method": label,
        **metrics,
        **derived,
        "validation_gain": _mean(_on_validation(r) for r in records),
        **_rates(metrics, n_clusters(first)),
        **{name: _mean(r.latency.get(name) for r in records) for name in LATENCY},
        "fit_seconds": _mean(r.seconds.get("fit") for r in records),
        "matched": _matched(records),
        "at_the_end": ", ".join(dict.fromkeys(name for r in records for name in ends_chosen(r.tuning))) or None,
        "seeds": len(records),
        "fits": fits_of(records),
        "n_examples": first.protocol["n_examples"],
        "model": first.labels["model"],
        "reward_model": first.labels["reward_model"],
        "held_out_model": first.labels["held_out_reward"],
        "device": " / ".join(sorted({r.environment["device"] for r in records})),
        "protocol": fingerprint(first.protocol)[:12],
    }


def _mean(values: Iterable[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return fmean(present) if present else None


def _by(records: Iterable[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return groups
