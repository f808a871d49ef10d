"""What the command line shows: the leaderboard, power, and written pairs."""

from collections.abc import Iterator, Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console

from steerbench.cli.console import note
from steerbench.cli.layout import DIGITS, Cell, Columns, between, number, print_table, remark
from steerbench.cli.stages import duration
from steerbench.plugins.spec import UNSTEERED
from steerbench.records.columns import CHOICE_SCORES, COLUMNS, GAINS, RANKED_BY
from steerbench.records.markdown import agreements
from steerbench.records.record import Record
from steerbench.records.side_effects import FAR_KL

if TYPE_CHECKING:
    from steerbench.bench.forecast import Forecast
    from steerbench.bench.units import Unit
    from steerbench.records.across import Across
    from steerbench.records.order_agreement import OrderAgreement
    from steerbench.records.statistics import Interval
    from steerbench.records.verdicts import Verdict

_SHOWN = (
    "rank",
    "method",
    "reward",
    "held_out_reward",
    "gold",
    "accuracy",
    "mc1",
    "mc2",
    "matching",
    "anti_steerable",
    "over_refusal",
    "harmful_compliance",
    "damage",
    "win_rate",
    "kl",
    "diversity",
    "coherence",
    "length",
    "decode_ratio",
    "decode_floor",
    "matched",
)
"""What the terminal shows; the CSV has all columns."""
_WITH_GAINS = (*GAINS, *CHOICE_SCORES)
_YIELDS = (
    "matched",
    "coherence",
    "diversity",
    "decode_floor",
    "length",
    "decode_ratio",
    "win_rate",
    "kl",
    "held_out_reward",
    "gold",
)
"""What a narrow terminal does not show, the first one first."""


def show(console: Console, table: pd.DataFrame, records: Sequence[Record], elsewhere: str = "") -> None:
    """Print one table per task, what was measured, and what was left out. `elsewhere` says where all columns are."""
    for task, rows in table.groupby("task", sort=True):
        first = next(r for r in records if r.labels["task"] == task)
        present = [name for name in _SHOWN if name in rows and rows[name].notna().any()]
        yields = [COLUMNS[name].heading for name in _YIELDS]
        cells: Columns = {COLUMNS[name].heading: [_cell(value) for value in rows[name]] for name in present}
        print_table(console, str(task), cells, yields=yields, elsewhere=elsewhere)
        gains = _gains(rows)
        if not gains.empty:
            console.print()
            _print_gains(console, gains, elsewhere)
        for line in _notes(first, rows, has_gains=not gains.empty):
            remark(console, line)
        console.print()


def show_power(console: Console, table: pd.DataFrame) -> None:
    """Print one table per task: how many prompts a difference takes, or what more prompts would show."""
    heads = {"method": "method", "sd": "SD", "n_examples": COLUMNS["n_examples"].heading}
    if "n_needed" in table:
        heads |= {"n_needed": "prompts needed", "smallest": "smallest"}
    else:
        heads |= {"smallest": "smallest", "smallest_2x": "2 ×", "smallest_4x": "4 ×"}
    for task, rows in table.groupby("task", sort=True):
        cells = {head: [_cell(value) for value in rows[name]] for name, head in heads.items()}
        print_table(console, str(task), cells, yields=["SD", heads["n_examples"], "2 ×", "4 ×"])
        console.print()


def show_paired(console: Console, table: pd.DataFrame, first: str, second: str) -> None:
    """Print one table per task: two methods beside each other, metric by metric."""
    for task, rows in table.groupby("task", sort=True):
        cells: Columns = {
            "metric": [COLUMNS[name].title for name in rows["metric"]],
            first: [_cell(value) for value in rows["first"]],
            second: [_cell(value) for value in rows["second"]],
            "difference": [_difference(row["difference"], row["low"], row["high"]) for _, row in rows.iterrows()],
            "p": [_cell(value) for value in rows["p"]],
            "higher": [_cell(value) for value in rows["higher"]],
        }
        n = int(rows["seeds"].iloc[0])
        print_table(console, f"{task}, {n} seed{'s' if n > 1 else ''}", cells, yields=["higher", "p"], names="metric")
        console.print()


def show_agreements(console: Console, found: "Sequence[OrderAgreement]") -> None:
    """Print a line for each two tables."""
    cells: Columns = {
        "first": [one.first for one in found],
        "second": [one.second for one in found],
        "methods": [_cell(one.methods) for one in found],
        "rank correlation": [
            "–" if (r := one.correlation) is None else _difference(r.mean, *_ends(r)) for one in found
        ],
    }
    print_table(console, "", cells, yields=["methods"], names="first")


def show_across(console: Console, found: "Sequence[Across]") -> None:
    """Print one table per task: methods down, studies across."""
    for one in found:
        cells: dict[str, list[Cell]] = {"method": list(one.rows)}
        for study in one.studies:
            gains = [one.gain(method, study) for method in one.rows]
            cells[study] = ["–" if gain is None else _difference(*gain) for gain in gains]
        print_table(console, one.task, cells, digits=(*DIGITS, 1))
        console.print()


def show_verdicts(console: Console, found: "Sequence[Verdict]") -> None:
    """Print a line for each claim and task."""
    cells: Columns = {
        "claim": [one.claim.claim for one in found],
        "task": [one.task or "–" for one in found],
        "difference": [_difference(one.difference.mean, *_ends(one.difference)) for one in found],
        "smallest": [_cell(one.smallest) for one in found],
        "verdict": [one.verdict for one in found],
    }
    print_table(console, "", cells, yields=["smallest", "difference"], names="claim")


def _ends(interval: "Interval") -> tuple[float, float]:
    low, high = (nan if end is None else end for end in (interval.low, interval.high))
    return low, high


def show_forecasts(console: Console, ahead: "Sequence[Forecast]") -> None:
    """Print what a run would come to, one row per task."""
    cells: Columns = {
        "task": [one.task for one in ahead],
        "records": [str(one.units) for one in ahead],
        "there": [str(one.found) for one in ahead],
        "responses": [f"{one.responses:,}" for one in ahead],
        "time": [duration(one.seconds) for one in ahead],
        "disk": [f"{one.bytes / 1e6:.1f} MB" for one in ahead],
    }
    print_table(console, "what is ahead", cells, names="task")
    remark(console, "Time: at the pace of the unsteered model here and now, fits, timing and costlier decoding apart.")


def show_units(console: Console, planned: "Sequence[Unit]") -> None:
    """Print what is handed to workers, one row per record, in the order in which they take them."""
    cells: Columns = {
        "method": [unit.method for unit in planned],
        "task": [unit.protocol.task for unit in planned],
        "seed": [str(unit.seed) for unit in planned],
    }
    print_table(console, "units of work", cells)
    console.print()


def _gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows and columns of the table of gains: methods beside which the unsteered model was measured."""
    steered = rows[[method.split(" #")[0] != UNSTEERED for method in rows["method"]]]  # `#` and a hash tell two apart
    present = [
        name for name in (f"{name}_gain" for name in _WITH_GAINS) if name in steered and steered[name].notna().any()
    ]
    columns = [name + end for name in present for end in ("", "_low", "_high")]
    return steered[["method", *columns]] if columns else pd.DataFrame()


def _print_gains(console: Console, gains: pd.DataFrame, elsewhere: str) -> None:
    present = [name for name in _WITH_GAINS if f"{name}_gain" in gains]
    cells: dict[str, list[Cell]] = {"method": list(gains["method"])}
    for name in present:
        cells[COLUMNS[name].heading] = [_gain(row, name) for _, row in gains.iterrows()]
    yields = [COLUMNS[name].heading for name in ("held_out_reward", "gold")]
    title = "over unsteered, 95 % interval"
    print_table(console, title, cells, yields=yields, digits=(*DIGITS, 1), elsewhere=elsewhere)


def _gain(row: pd.Series, name: str) -> Cell:
    return _difference(*(row[f"{name}_gain{end}"] for end in ("", "_low", "_high")))


def _difference(mean: float, low: float, high: float) -> Cell:
    if pd.isna(mean):
        return "–"
    return lambda n: f"{mean:+z.{n}f} ({'no interval' if pd.isna(low) else between(low, high, n)})"


def _cell(value: Any) -> Cell:
    if pd.isna(value):
        return "–"
    return number(value) if isinstance(value, float) else str(value)


def _notes(record: Record, rows: pd.DataFrame, has_gains: bool) -> Iterator[str]:
    labels = record.labels
    held_out = f", held-out {labels['held_out_reward']}" if labels["held_out_reward"] else ""
    yield (
        f"{labels['model']} on {record.protocol['n_examples']} test prompts, seeds {record.protocol['seeds']}; "
        f"reward {labels['reward_model'] or 'none'}{held_out}; encoder {labels['encoder']}."
    )
    yield f"time ×: decoding beside the unsteered model, batch 1, on {rows['device'].iloc[0]}."
    if has_gains:
        yield (
            "Intervals: over the prompts, in clusters (posts or openings), and over the seeds where these gave several "
            "steerings; what other training data would change is not in them."
        )
    elif UNSTEERED not in {method.split(" #")[0] for method in rows["method"]}:
        yield "No gains: the unsteered model was not measured beside these."
    yield from agreements(rows)
    if unsure := list(rows["method"][rows["fits"].isna()]):
        yield f"One seed, and another may steer otherwise, so that nothing is claimed of: {', '.join(unsure)}."
    if far := list(rows["method"][rows["kl"].astype(float) > FAR_KL]):
        yield f"More than {FAR_KL:g} nat per token from the unsteered model, mostly other tokens: {', '.join(far)}."
    if unranked := list(rows["method"][rows["rank"].isna()]):
        yield (
            f"No rank, for want of seeds: {', '.join(unranked)}."
            if any(rows[name].notna().any() for name in RANKED_BY)
            else "No ranks: there is neither a reward nor a score of given answers to rank by."
        )
    if record.counts:
        yield "Left out: " + ", ".join(f"{n} {reason}" for reason, n in record.counts.items()) + "."
    if record.truncated:
        yield f"{record.truncated} texts were too long for the reward model, which read their end."


def show_pairs(console: Console, reports: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Print the first pairs that parts of methods wrote, by their labels, and how many could not be used."""
    found = [(label, part.get("self_generated")) for label, part in reports]
    if not any(written for _, written in found):
        note(console, "no pairs to show: none of the methods writes its own.", "dim")
    for label, written in found:
        if not written:
            continue
        dropped = "".join(f", {reason}: {n}" for reason, n in written["dropped"].items() if n)
        shown = min(len(written["first"]), written["kept"])
        note(console, f"  pairs that {label} wrote: {written['kept']} kept{dropped}; the first {shown}:", "bold")
        for pair in written["first"]:
            note(console, f"  ? {pair['query']}")
            for side, sign in (("good", "+"), ("bad", "-")):
                note(console, f"    {sign} {pair[side + '_description']}", "dim")
                note(console, f"    {sign} {pair[side]}")
