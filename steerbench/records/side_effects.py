"""What the mean gains hide: length, repetition, perplexity, noise, and guides that no longer agree with the truth.

All of it is derived from the texts and raw scores of records when they are read, so that older records have it too;
what theirs cannot tell is None.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from steerbench.plugins.spec import UNSTEERED
from steerbench.records.agreement import agreement, of_ranks
from steerbench.records.columns import SIDE_EFFECTS
from steerbench.records.length_control import NEEDED, Pairs, length_controlled
from steerbench.records.ngrams import repetition_of
from steerbench.records.noise_floor import worse_floor
from steerbench.records.per_token import per_response, pooled_perplexity
from steerbench.records.record import Record
from steerbench.records.scores import Scores, n_clusters, scores_of

Numbers = dict[str, float | None]
AGREEMENTS = {"agreement": "held_out_reward", "agreement_gold": "gold"}
"""What the guiding reward is held against."""
FAR_KL = 1.0
"""Nats per token: a model so far from the unsteered one mostly gives other tokens, and its table says so."""
REFUSALS = ("over_refusal", "harmful_compliance")


def side_effects(rows: Mapping[str, Sequence[Record]], unsteered: Mapping[int, Record]) -> dict[str, Numbers]:
    """Return for each row of a task's table the columns `SIDE_EFFECTS`, and those of the metrics that are derived.

    `unsteered` is the record of the unsteered model for each seed.
    """
    beside = [scores_of(record) for _, record in sorted(unsteered.items())]
    floor = worse_floor(beside) if beside and all(_has(table, ("id", "reward")) for table in beside) else None
    gains = length_controlled(_pairs(rows, unsteered))
    plain = {seed: _agreements_in(scores_of(record)) for seed, record in unsteered.items()}
    found: dict[str, Numbers] = {}
    for name, records in rows.items():
        gain = gains.get(name)
        ends = dict(zip(("", "_low", "_high"), gain or (None,) * 3, strict=True))
        numbers = {**_of_records(records), **_agreements(records, plain), "worse_floor": floor}
        found[name] = {**dict.fromkeys(SIDE_EFFECTS), **numbers}
        found[name] |= {f"length_controlled_gain{end}": value for end, value in ends.items()}
    return found


def _of_records(records: Sequence[Record]) -> Numbers:
    tables = [scores_of(record) for record in records]
    derived: Numbers = {"kl_response": _over_seeds(per_response(table, "kl") for table in tables)}
    derived |= {name: _over_seeds(_share(table, name) for table in tables) for name in REFUSALS}
    for name, value in (
        ("repetition", _over_seeds(map(_repetition, tables))),
        ("perplexity", pooled_perplexity(tables)),
    ):
        derived |= {} if value is None else {name: value}  # else as the records keep it
    return derived


def _share(table: Scores, name: str) -> float | None:
    """Return the mean over the responses that a column says anything of; None where there is none."""
    told = table.table[name].dropna() if name in table else None
    return None if told is None or told.empty else float(told.mean())


def _repetition(table: Scores) -> float | None:
    if "repetition" in table:
        return float(table.table["repetition"].mean())
    return fmean(map(repetition_of, table.table["response"])) if len(table) and "response" in table else None


def _pairs(rows: Mapping[str, Sequence[Record]], unsteered: Mapping[int, Record]) -> dict[str, Pairs]:
    """Return the tables of each row beside those of the unsteered model, where both have all that is needed."""
    beside = {seed: scores_of(record) for seed, record in unsteered.items() if _has(scores_of(record), NEEDED)}
    return {
        name: [(scores_of(record), beside[record.seed]) for record in records]
        for name, records in rows.items()
        if records[0].method != UNSTEERED and all(r.seed in beside and _has(scores_of(r), NEEDED) for r in records)
    }


def _agreements(records: Sequence[Record], plain: Mapping[int, Numbers]) -> Numbers:
    """Return how well the guide agrees with what it is held against, and how much less than without steering.

    `plain` has the agreements of the unsteered model for each seed.
    """
    steered = [_agreements_in(scores_of(record)) for record in records]
    found: Numbers = {}
    for name in AGREEMENTS:
        mean = _over_seeds(numbers[name] for numbers in steered)
        before = _over_seeds(plain[r.seed][name] if r.seed in plain else None for r in records)
        known = None if mean is None else of_ranks(mean, n_clusters(records[0]))
        found |= {name: mean, f"{name}_low": known and known.low, f"{name}_high": known and known.high}
        found |= {f"{name}_change": None if mean is None or before is None else mean - before}
    return found


def _agreements_in(table: Scores) -> Numbers:
    return {name: agreement(table, "reward", other) for name, other in AGREEMENTS.items()}


def _over_seeds(values: Iterable[float | None]) -> float | None:
    """Return the mean over the seeds; None where one of them has no number."""
    seeds = list(values)
    known = [value for value in seeds if value is not None]
    return fmean(known) if known and len(known) == len(seeds) else None


def _has(table: Scores, names: Sequence[str]) -> bool:
    """Tell whether a table has columns, and numbers for every response in those that are scores."""
    scores = [name for name in names if name not in ("id", "group")]
    return all(name in table for name in names) and table.has(*scores)
