"""Steered tokens per second beside other libraries: one model, one vector, the same prompts and tokens, in turns.

`make bench-peers` runs it in an environment of its own, where steering-vectors and repeng are:

    python tests/benchmarks/peers.py [--model DIR] [--rounds 7] [--out results/speed]

Everybody adds the same vector to the output of one block at all positions, greedily, in float32, on batches that are
padded on the left. Each library decodes as its users do: the peers in transformers' `generate`, batch after batch,
steerbench in its own loop, where a row that ends gives its place to one that waits. A token counts if it belongs to a
reply, up to its end token. Who writes other tokens than a plain hook is told: their time is of other work.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from steerbench import Decoding, LanguageModel, Steering, generate, steered
from steerbench.data import Dialogue
from steerbench.data.splits import load_data
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.latency.clocks import conditions
from steerbench.latency.grid import ratio
from steerbench.models.machine import environment
from steerbench.plugins.spec import Part, build_task
from steerbench.records.markdown import table_line, write_between
from steerbench.testbed import NAME, named

START, END = "<!-- peers: written by make bench-peers -->", "<!-- end of peers -->"
PLAIN, OURS, HOOK = "transformers, unsteered", "steerbench", "transformers, a plain hook"
PEERS = ("steering-vectors", "repeng")
BATCHES = (1, 8, 32)
ROWS = {1: 8, 8: 64, 32: 128}
"""Prompts at each batch size: enough for several batches where there are several rows."""
SHARE = 0.1
"""Length of the vector as a share of the states'."""
Replies = list[tuple[int, ...]]


def contenders(
    lm: LanguageModel, layer: int, vector: torch.Tensor
) -> dict[str, Callable[[Sequence[Dialogue], int], Replies]]:
    """Return who decodes, by name: a function of prompts and batch size."""
    steering = Steering(edits=(PlacedEdit(Site("resid_post", layer), Add(vector), "all"),))

    def ours(prompts: Sequence[Dialogue], size: int) -> Replies:
        return [reply.ids for reply in generate(lm, prompts, steering, DECODING, batch_size=size)]

    def in_generate(inside: Callable[[], AbstractContextManager[Any]]) -> Callable[[Sequence[Dialogue], int], Replies]:
        def run(prompts: Sequence[Dialogue], size: int) -> Replies:
            with inside():
                return [ids for i in range(0, len(prompts), size) for ids in generated(lm, prompts[i : i + size])]

        return run

    return {
        PLAIN: in_generate(nullcontext),
        HOOK: in_generate(lambda: hooked(lm, layer, vector)),
        OURS: ours,
        f"{OURS}, around generate": in_generate(lambda: steered(lm.model, steering)),
        PEERS[0]: in_generate(lambda: by_steering_vectors(lm, layer, vector)),
        PEERS[1]: in_generate(lambda: by_repeng(lm, layer, vector)),
    }


DECODING = Decoding(max_new_tokens=128)


def generated(lm: LanguageModel, prompts: Sequence[Dialogue]) -> Replies:
    """Return the new ids of each prompt up to its end token, from transformers' own loop."""
    batch = lm.left_padded([lm.tokens(prompt) for prompt in prompts])
    ids = lm.model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=DECODING.max_new_tokens,
        do_sample=False,
        eos_token_id=list(lm.end_ids),
        pad_token_id=lm.pad_id,
    )
    return [lm.cut(row).ids for row in ids[:, batch.input_ids.shape[1] :].tolist()]


@contextmanager
def hooked(lm: LanguageModel, layer: int, vector: torch.Tensor) -> Iterator[None]:
    """Add the vector with a hook of six lines, as one would by hand."""

    def add(module: Any, args: Any, output: Any) -> Any:
        return output + vector if isinstance(output, torch.Tensor) else (output[0] + vector, *output[1:])

    handle = lm.anatomy.blocks[layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def by_steering_vectors(lm: LanguageModel, layer: int, vector: torch.Tensor) -> AbstractContextManager[Any]:
    """Return the context of steering-vectors in which the model is steered."""
    from steering_vectors import SteeringVector

    steering: AbstractContextManager[Any] = SteeringVector({layer: vector}).apply(lm.model)
    return steering


@contextmanager
def by_repeng(lm: LanguageModel, layer: int, vector: torch.Tensor) -> Iterator[None]:
    """Have repeng replace the block, as it does, and put it back."""
    vars(np).setdefault("float_", np.float64)  # which repeng names, and NumPy 2 does not have
    from repeng import ControlModel, ControlVector

    model = ControlModel(lm.model, [layer])
    model.set_control(ControlVector(model_type=lm.model.config.model_type, directions={layer: vector.numpy()}), 1.0)
    try:
        yield
    finally:
        model.unwrap()


def measure(lm: LanguageModel, prompts: Sequence[Dialogue], layer: int, rounds: int) -> list[dict[str, Any]]:
    """Time everybody at every batch size, in turns; return a row for each."""
    runs = contenders(lm, layer, a_vector(lm, layer, prompts[:8]))
    rows = []
    for size in BATCHES:
        some = prompts[: ROWS[size]]
        replies = {name: run(some, size) for name, run in runs.items()}  # and everybody is warm
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                start = perf_counter()
                run(some, size)
                seconds[name].append(perf_counter() - start)
        fastest = min(PEERS, key=lambda name: median(seconds[name]))
        for name, taken in seconds.items():
            tokens = sum(map(len, replies[name]))
            rows.append(
                {
                    "batch": size,
                    "library": name,
                    "tokens_per_second": tokens / median(taken),
                    "times_the_fastest_peer": ratio(list(zip(seconds[fastest], taken, strict=True))),
                    "same_replies": sum(a == b for a, b in zip(replies[name], replies[HOOK], strict=True)) / len(some),
                    "seconds": taken,
                }
            )
            print(line_of(rows[-1]), flush=True)
    return rows


@torch.no_grad()
def a_vector(lm: LanguageModel, layer: int, prompts: Sequence[Dialogue]) -> torch.Tensor:
    """Return a random vector, (width,), whose length is a share of that of the states."""
    from steerbench.engine.activations import activations

    states = activations(lm, Site("resid_post", layer), [lm.tokens(p) for p in prompts], "last_prompt")
    vector = torch.randn(states[0].shape, generator=torch.Generator().manual_seed(0))
    scaled: torch.Tensor = vector * SHARE * torch.stack(states).norm(dim=1).mean() / vector.norm()
    return scaled


def line_of(row: dict[str, Any]) -> str:
    """Return a line of the table."""
    speed, same = row["times_the_fastest_peer"], f"{row['same_replies']:.0%}"
    interval = "" if speed["low"] is None else f" ({speed['low']:.2f} to {speed['high']:.2f})"
    cells = [
        str(row["batch"]),
        row["library"],
        f"{row['tokens_per_second']:.0f}",
        f"{speed['median']:.2f}{interval}",
        same,
    ]
    return table_line(cells)


def page(folder: Path) -> str:
    """Return what stands in docs/speed.md: a table for each record."""
    files = sorted(folder.glob("peers-*.json"))
    return "".join(table(json.loads(file.read_text(encoding="utf-8"))) for file in files)


def table(record: dict[str, Any]) -> str:
    """Return the table of one model, and under what it was measured."""
    on, versions = record["environment"], ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    heads = ["batch", "library", "tokens per second", "times the fastest peer", "replies as with a plain hook"]
    told = (
        f"{record['model']}, {on['device']}, float32, {record['rounds']} rounds in turns; "
        f"transformers {on['transformers']}, torch {on['torch']}, {versions}; load average {record['load']:.1f}."
    )
    lines = [table_line(heads), table_line(["--:", ":--", "--:", "--:", "--:"]), *map(line_of, record["rows"])]
    return "\n".join(["", told, "", *lines, ""])


def main() -> None:
    """Measure, write the record, and the table of docs/speed.md."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="testbed")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--out", type=Path, default=Path("results/speed"))
    options.add_argument("--page", type=Path, default=Path("docs/speed.md"))
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    lm = LanguageModel.load(given.model, dtype=torch.float32)
    load = conditions(lm.device).get("load_average", np.nan)
    name = Path(given.model).name
    rows = measure(lm, questions(max(ROWS.values())), lm.n_layers // 2, given.rounds)
    record = {
        "model": name,
        "rounds": given.rounds,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(lm.device),
        "versions": {name: version(name) for name in PEERS},
        "load": load,
        "rows": rows,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / f"peers-{name}.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_between(given.page, START, END, page(given.out))
    print(f"written: {file}, {given.page}")


def questions(n: int) -> list[Dialogue]:
    """Return test prompts of the testbed, of different lengths."""
    task, home = build_task(Part("hh_rlhf", {})), named(NAME)
    assert home is not None
    return [example.prompt for example in load_data(task, home.data / "hh_rlhf").test[:n]]


if __name__ == "__main__":
    main()
