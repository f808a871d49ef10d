"""What the terminal shows of a record of timings."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from steerbench.cli.console import note
from steerbench.cli.layout import Cell, Columns, between, print_table, remark
from steerbench.latency.grid import AGAIN, FEWEST, RATIOS
from steerbench.plugins.spec import UNSTEERED

_YIELDS = ("MB", "prompt", "prefill ms", "prefill ×", "floor ×", "decode ×", "ms/token")
"""What a narrow terminal does not show, the first one first."""


def show_latency(console: Console, record: Mapping[str, Any], elsewhere: str = "") -> None:
    """Print one table per cell, and what stands in none of them. `elsewhere` says where all numbers are."""
    for cell in record["cells"]:
        title = f"{record['model']['name']}: batch {cell['batch_size']}, {cell['prompt_tokens']} prompt tokens"
        arms = [arm for arm in cell["arms"] if "problem" not in arm]
        if arms:
            print_table(console, title, _cells(arms), yields=_YIELDS, elsewhere=elsewhere)
        else:
            note(console, title, "italic")
        for problem, methods in _problems(cell).items():
            note(console, f"{', '.join(methods)}: {problem}", "yellow")
        console.print()
    for line in _notes(record):
        remark(console, line)


def _problems(cell: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return which methods have which problem in a cell."""
    found: dict[str, list[str]] = {}
    for arm in cell["arms"]:
        if "problem" in arm:
            found.setdefault(arm["problem"], []).append(arm["method"])
    return found


def _cells(arms: Sequence[Mapping[str, Any]]) -> Columns:
    floors = ["" if arm.get("decode_floor") is None else f"{arm['decode_floor']:.2f}" for arm in arms]
    prefill, decode, total = ([_ratio(arm["ratios"].get(name)) for arm in arms] for name in RATIOS)
    return {
        "method": [arm["method"] for arm in arms],
        "prompt": [str(arm["prompt_tokens"]) for arm in arms],
        "prefill ms": [f"{arm['prefill_ms']:.1f}" for arm in arms],
        "prefill ×": prefill,
        "ms/token": [f"{arm['decode_ms_per_token']:.2f}" for arm in arms],
        "decode ×": decode,
        **({"floor ×": floors} if any(floors) else {}),
        "total ×": total,
        "MB": [f"{arm['peak_memory_mb']:.0f}" for arm in arms],
    }


def _ratio(found: Mapping[str, float | None] | None) -> Cell:
    if found is None:
        return ""
    median, low, high = found["median"], found["low"], found["high"]
    if low is None or high is None:
        return lambda n: f"{median:.{n}f}"
    return lambda n: f"{median:.{n}f} ({between(low, high, n)})"


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
    if any("decode_floor" in arm for cell in record["cells"] for arm in cell["arms"]):
        yield "Floor: the least that decoding could take if moving bytes took all the time (docs/latency.md)."
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
