"""`steerbench generate`."""

from typing import TYPE_CHECKING, Annotated

import typer

from steerbench.cli.console import err, out
from steerbench.cli.imports import import_swiftly
from steerbench.cli.options import (
    Data,
    Device,
    Dtype,
    MaxNew,
    Methods,
    Model,
    NTrain,
    Plugins,
    ThinkingOption,
    Threads,
    add_plugins,
    check_names,
    strengths,
)
from steerbench.plugins.spec import UNSTEERED
from steerbench.testbed import NAME as TESTBED

if TYPE_CHECKING:
    from steerbench.bench.try_out import Sample


def generate(
    prompts: Annotated[list[str], typer.Argument(help="Prompts, each in quotes.")],
    methods: Methods = UNSTEERED,
    strength: Annotated[
        str | None, typer.Option(help="Strengths to try, such as 0.5,1,2: each method once at each of them.")
    ] = None,
    model: Model = TESTBED,
    reward_model: Annotated[str | None, typer.Option(help="For methods that learn from a reward.")] = None,
    task: Annotated[str, typer.Option(help="Task whose training examples methods learn from.")] = "hh_rlhf",
    data: Data = None,
    n_train: NTrain = 512,
    max_new_tokens: MaxNew = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the fit, and of the draws.", min=0)] = 0,
    thinking: ThinkingOption = "off",
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = None,
    show_pairs: Annotated[bool, typer.Option("--show-pairs", help="Also show the pairs that a method wrote.")] = False,
    plugin: Plugins = None,
) -> None:
    """Show what methods make of prompts, beside the unsteered model, and how far they move it."""
    add_plugins(plugin)
    check_names(methods=methods, tasks=task)
    import_swiftly("steerbench.bench.try_out")
    from steerbench.bench.protocol import FitSettings
    from steerbench.bench.setup import Options
    from steerbench.bench.try_out import sample
    from steerbench.cli import replies, stages, tables
    from steerbench.decoding import Decoding

    settings = FitSettings(
        task=task,
        model=model,
        reward_model=reward_model,
        data=data,
        n_train=n_train,
        decoding=Decoding(max_new_tokens=max_new_tokens, temperature=temperature),
        thinking=thinking,  # type: ignore[arg-type]  # checked there
        dtype=dtype,
    )
    shown: list[Sample] = []
    try:
        with stages.shown(err) as progress:
            options = Options(device=device, threads=threads, progress=progress)
            for of_one_method in sample(prompts, methods, settings, options, seed, strengths(strength)):
                shown.append(of_one_method)
    finally:  # what was made before an error is worth seeing
        if strength and replies.fits_beside(out, shown):
            replies.show_beside(out, prompts, shown)
        else:
            replies.show_below(out, shown)
        if show_pairs:
            tables.show_pairs(out, [part for one in shown for part in one.report.items()])
