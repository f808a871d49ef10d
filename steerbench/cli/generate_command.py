"""`steerbench generate`."""

from typing import TYPE_CHECKING, Annotated

import typer

from steerbench.cli.console import err, out, say
from steerbench.cli.options import Data, Device, Dtype, MaxNew, Methods, Model, NTrain, Plugins, add_plugins
from steerbench.plugins.spec import UNSTEERED
from steerbench.testbed import NAME as TESTBED

if TYPE_CHECKING:
    from steerbench.bench.try_out import Sample


def generate(
    prompts: Annotated[list[str], typer.Argument(help="Prompts, each in quotes.")],
    methods: Methods = UNSTEERED,
    model: Model = TESTBED,
    reward_model: Annotated[str | None, typer.Option(help="For methods that learn from a reward.")] = None,
    task: Annotated[str, typer.Option(help="Task whose training examples methods learn from.")] = "hh_rlhf",
    data: Data = None,
    n_train: NTrain = 512,
    max_new_tokens: MaxNew = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the fit, and of the draws.", min=0)] = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    show_pairs: Annotated[bool, typer.Option("--show-pairs", help="Also show the pairs that a method wrote.")] = False,
    plugin: Plugins = None,
) -> None:
    """Show what methods make of prompts, beside the unsteered model."""
    add_plugins(plugin)
    from steerbench.bench.protocol import FitSettings
    from steerbench.bench.setup import Options
    from steerbench.bench.try_out import sample
    from steerbench.cli import tables
    from steerbench.decoding import Decoding

    settings = FitSettings(
        task=task,
        model=model,
        reward_model=reward_model,
        data=data,
        n_train=n_train,
        decoding=Decoding(max_new_tokens=max_new_tokens, temperature=temperature),
        dtype=dtype,
    )
    shown: list[Sample] = []
    try:
        with tables.bars(err) as progress:
            options = Options(device=device, progress=progress)
            for of_one_method in sample(prompts, methods, settings, options, seed):
                shown.append(of_one_method)
    finally:  # what was made before an error is worth seeing
        for method, responses, report in shown:
            out.print(method, style="bold", markup=False, highlight=False, soft_wrap=True)
            for response, plain in zip(responses, shown[0].responses, strict=True):
                equal = method != UNSTEERED and response.text == plain.text
                say(f"  {'(equal to the unsteered reply)' if equal else response.text or '(empty)'}")
            if show_pairs:
                tables.show_pairs(out, report)
