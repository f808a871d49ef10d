"""`steerbench latency`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from steerbench.cli.console import complain, err, out, say
from steerbench.cli.imports import import_swiftly
from steerbench.cli.options import (
    Data,
    Device,
    Dtype,
    Methods,
    Model,
    NTrain,
    Plugins,
    ThinkingOption,
    Threads,
    add_plugins,
    check_names,
    words,
)
from steerbench.errors import SteerbenchError
from steerbench.testbed import NAME as TESTBED


def latency(
    methods: Methods = "re_control,static_prompt,caa",
    model: Model = TESTBED,
    config: Annotated[
        str | None,
        typer.Option(
            help="Random weights in place of a model: llama-3-8b, vicuna-7b, falcon-7b, a config.json or its folder."
        ),
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="Prompts at once, separated by commas.")] = "1,8,32",
    prompt_tokens: Annotated[str, typer.Option(help="Lengths of prompts, separated by commas.")] = "32,128,256",
    new_tokens: Annotated[int, typer.Option(help="Tokens of every response.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="Timings of each method in each cell, after one to warm up.", min=1)] = 10,
    reward_model: Annotated[
        str | None, typer.Option(help="Reward that methods learn from or choose by; default: the testbed's.")
    ] = None,
    task: Annotated[str, typer.Option(help="Task whose training examples methods learn from.")] = "hh_rlhf",
    data: Data = None,
    n_train: NTrain = 32,
    seed: Annotated[int, typer.Option(help="Of the prompts, the order within rounds, and random weights.", min=0)] = 0,
    thinking: ThinkingOption = "off",
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder for records.")] = Path("runs/latency"),
    plugin: Plugins = None,
) -> None:
    """Time methods beside the unsteered model, for every batch size and length of prompt.

    Methods are fitted on a few training examples, the testbed's unless --data names others: what is learned changes
    quality, and hardly the cost. So a model with random weights, --config, does as well, and needs no download.
    """
    if config is not None and model != TESTBED:
        raise SteerbenchError("--config makes a model of its own; leave out --model.")
    add_plugins(plugin)
    check_names(methods=methods, tasks=task)
    import_swiftly("steerbench.latency.measurement")
    from steerbench.bench.protocol import FitSettings
    from steerbench.bench.setup import Options
    from steerbench.cli import stages
    from steerbench.cli.latency_table import show_latency
    from steerbench.latency.grid import Grid
    from steerbench.latency.latency_record import write_latency
    from steerbench.latency.measurement import measure_latency
    from steerbench.records.store import Store

    grid = Grid(
        batch_sizes=_sizes(batch_sizes, "batch-sizes", "1,8,32"),
        prompt_tokens=_sizes(prompt_tokens, "prompt-tokens", "32,128,256"),
        new_tokens=new_tokens,
        rounds=rounds,
        seed=seed,
    )
    settings = FitSettings(
        task=task,
        model=model,
        reward_model=reward_model,
        data=data,
        n_train=n_train,
        thinking=thinking,  # type: ignore[arg-type]  # checked there
        dtype=dtype,
    )
    Store(folder).prepare()
    with stages.shown(err) as progress:
        options = Options(device=device, threads=threads, progress=progress)
        record = measure_latency(methods, settings, grid, options, config=config)
    path = write_latency(record, folder)
    show_latency(out, record, f"All numbers are in {path}.")
    for method, message in record["failures"].items():
        complain(f"failed: {method}: {message}")
    if missing := _untimed(record):
        complain(f"failed: {', '.join(missing)}: timed in no cell; the reasons stand below the cells.")
    say(f"written: {path}")
    if record["failures"] or missing:
        raise typer.Exit(2)


def _untimed(record: Mapping[str, Any]) -> list[str]:
    """Return what was to be timed and has no timing in any cell."""
    from steerbench.plugins.spec import UNSTEERED

    timed = {arm["method"] for cell in record["cells"] for arm in cell["arms"] if "problem" not in arm}
    return [name for name in (UNSTEERED, *record["methods"]) if name not in {*timed, *record["failures"]}]


def _sizes(text: str, option: str, example: str) -> tuple[int, ...]:
    """Return the whole numbers of an option, 1 or more. Raises SteerbenchError if one is none."""
    found = words(text, option, example)
    if not all(word.isdecimal() and int(word) for word in found):
        raise SteerbenchError(f"--{option} {text!r} must be whole numbers above 0, separated by commas: {example}.")
    return tuple(map(int, found))
