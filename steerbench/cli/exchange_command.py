"""`steerbench export` and `steerbench import`."""

from pathlib import Path
from typing import Annotated

import typer

from steerbench.cli.console import err, say
from steerbench.cli.imports import import_swiftly
from steerbench.cli.options import Data, Device, Dtype, Model, NTrain, Plugins, Threads, add_plugins, check_names
from steerbench.testbed import NAME as TESTBED


def export(
    method: Annotated[str, typer.Argument(help="One method, such as 'caa:layer=13:scope=all'.")],
    out: Annotated[Path, typer.Argument(help="File, or folder for the formats steering and folded.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="gguf (llama.cpp, repeng), safetensors, steering-vectors, lm-eval: vectors; "
            "steering: all of it; folded: a model folder with the edit in its biases.",
        ),
    ] = "steering",
    model: Model = TESTBED,
    reward_model: Annotated[str | None, typer.Option(help="For methods that learn from a reward.")] = None,
    task: Annotated[str, typer.Option(help="Task whose training examples the method learns from.")] = "hh_rlhf",
    data: Data = None,
    n_train: NTrain = 512,
    seed: Annotated[int, typer.Option(help="Of the fit.", min=0)] = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = None,
    plugin: Plugins = None,
) -> None:
    """Fit a method and write what it learned for other programs; folders and safetensors hold the recipe, too."""
    add_plugins(plugin)
    check_names(methods=method, tasks=task)
    import_swiftly("steerbench.bench.export")
    from steerbench.bench import export as exporting
    from steerbench.bench.protocol import FitSettings
    from steerbench.bench.setup import Options
    from steerbench.cli import stages

    settings = FitSettings(task=task, model=model, reward_model=reward_model, data=data, n_train=n_train, dtype=dtype)
    with stages.shown(err) as progress:
        options = Options(device=device, threads=threads, progress=progress)
        exporting.export(method, out, form, settings, options, seed)
    say(f"wrote {out}")


def import_(
    file: Annotated[Path, typer.Argument(help="Vectors of another library: .gguf, .safetensors, .pt; or a steering.")],
    folder: Annotated[Path, typer.Argument(help="New folder for the steering.")],
) -> None:
    """Read vectors of another library into a steering, which the method `saved` runs and measures."""
    from steerbench.bench.export import fresh
    from steerbench.exchange.formats import read_steering

    steering = read_steering(file)
    fresh(folder)
    steering.save(folder)
    sites = ", ".join(str(placed.site) for placed in steering.edits)
    say(f"wrote {folder}: {sites}. Try it: steerbench run --methods saved:file={folder}")
