"""What the terminal shows of a record of timings."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from steerbench.latency.grid import AGAIN, FEWEST, RATIOS
from steerbench.plugins.spec import UNSTEERED

_HEADS = ("method", "prompt", "prefill ms", "×", "ms/token", "×", "total ×", "MB")


def show_latency(console: Console, record: Mapping[str, Any]) -> None:
    """Print one table per cell, and what stands in none of them. Numbers are never cut, however narrow the terminal."""
    for cell in record["cells"]:
        title = f"{record['model']['name']}: batch {cell['batch_size']}, {cell['prompt_tokens']} prompt tokens"
        table = _table(title, [arm for arm in cell["arms"] if "problem" not in arm])
        if table.row_count:
            table.width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
            console.print(table, crop=False)
        else:
            console.print(Text(title, style="italic"), soft_wrap=True)
        for problem, methods in _problems(cell).items():
            text = f"{', '.join(methods)}: {problem}"
            console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        console.print()
    for line in _notes(record):
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def _problems(cell: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return which methods have which problem in a cell."""
    found: dict[str, list[str]] = {}
    for arm in cell["arms"]:
        if "problem" in arm:
            found.setdefault(arm["problem"], []).append(arm["method"])
    return found


def _table(title: str, arms: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for head in _HEADS:
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    for arm in arms:
        table.add_row(*map(Text, _row(arm)))  # Text: a method may hold [mark-up]
    return table


def _row(arm: Mapping[str, Any]) -> tuple[str, ...]:
    prefill, decode, total = (_ratio(arm["ratios"].get(name)) for name in RATIOS)
    return (
        arm["method"],
        str(arm["prompt_tokens"]),
        f"{arm['prefill_ms']:.1f}",
        prefill,
        f"{arm['decode_ms_per_token']:.2f}",
        decode,
        total,
        f"{arm['peak_memory_mb']:.0f}",
    )


def _ratio(found: Mapping[str, float | None] | None) -> str:
    if found is None:
        return ""
    low, high = found["low"], found["high"]
    return f"{found['median']:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")


def _notes(record: Mapping[str, Any]) -> Iterator[str]:
    model, grid = record["model"], record["grid"]
    memory = "all of the process, weights included" if record["memory"] == "process" else "tensors on the GPU"
    yield (
        f"{model['parameters'] / 1e6:,.1f} M parameters, {model['dtype']}, attention {model['attention']}, on "
        f"{record['device']}; {grid['new_tokens']} new tokens, {grid['rounds']} rounds in turns after one to warm up."
    )
    enough = grid["rounds"] >= FEWEST
    ends = "and 95 % interval by bootstrap" if enough else f"alone: an interval needs {FEWEST} rounds"
    yield f"×: beside {UNSTEERED} in the same round, median {ends}. MB: peak of {memory}."
    if noise := _noise(record):
        yield f"Noise: {UNSTEERED} beside itself came out {noise}, intervals of all cells; less than that says nothing."
    if model["weights"] == "random":
        yield "The weights are random: what methods learned from them means nothing, what they cost is the same."
    if record["choosing"] and record["reward_model"]["name"].startswith("testbed"):
        yield "Where a method chooses among candidates, the time of the testbed's small reward model is in it."


def _noise(record: Mapping[str, Any]) -> str:
    """Return from where to where the intervals of the unsteered model beside itself reach, over all cells."""
    arms = [arm for cell in record["cells"] for arm in cell["arms"] if arm["method"] == AGAIN]
    texts = []
    for name in RATIOS:
        ratios = [arm["ratios"][name] for arm in arms if "problem" not in arm]
        known = [r for r in ratios if r["low"] is not None]
        if known:
            texts.append(f"{name} {min(r['low'] for r in known):.3f} to {max(r['high'] for r in known):.3f}")
    return ", ".join(texts)
