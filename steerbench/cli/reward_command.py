"""`steerbench reward`: train."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from steerbench.cli.console import complain, err, out, say
from steerbench.cli.imports import import_swiftly
from steerbench.cli.layout import Columns, print_table
from steerbench.cli.options import Device, Plugins, Threads, add_plugins, check_names
from steerbench.cli.repetition import Commands

app = Commands(help="Reward models for a task's preference pairs.", no_args_is_help=True)


@app.callback()
def _reward() -> None:
    """Reward models for a task's preference pairs."""


@app.command()
def train(
    backbone: Annotated[str, typer.Option(help="Model whose states are read: a folder or org/name[@revision].")],
    folder: Annotated[Path, typer.Option("--out", help="Folder of the reward.")],
    task: Annotated[str, typer.Option(help="Task whose pairs it learns from.")] = "hh_rlhf",
    data: Annotated[
        Path | None, typer.Option(help="File or folder in the task's original schema; default: the Hub.")
    ] = None,
    block: Annotated[int | None, typer.Option(help="Block that is read; default: chosen on validation.", min=0)] = None,
    finetune: Annotated[int, typer.Option(help="Train this many of the last blocks too.", min=0)] = 0,
    length_neutral: Annotated[
        bool, typer.Option("--length-neutral", help="Log-length is a covariate of the fit, and no part of a score.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(help="Leave out longer pairs: dialogue and reply.", min=2)] = 256,
    half: Annotated[
        int | None,
        typer.Option(help="Learn from one half of the prompts, 0 or 1: for two rewards that share none.", min=0, max=1),
    ] = None,
    n_train: Annotated[int | None, typer.Option(help="Most pairs to learn from; default: all.", min=2)] = None,
    n_examples: Annotated[int | None, typer.Option(help="Most held-out pairs; default: all.", min=2)] = None,
    states: Annotated[Path, typer.Option(help="Folder in which states are kept for the next training.")] = Path(
        "runs/states"
    ),
    dtype: Annotated[
        str, typer.Option(help="auto (bfloat16 where the processor has it), float32, bfloat16 or float16.")
    ] = "auto",
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(help="Pairs at once, and of a step.", min=1)] = 16,
    threads: Threads = None,
    plugin: Plugins = None,
) -> None:
    """Train a reward by Bradley-Terry: a linear head on a model's frozen states, which are computed once and kept.

    The folder is used as --reward-model. It says how good the reward is on held-out prompts, beside "longer wins".
    """
    add_plugins(plugin)
    check_names(tasks=task)
    import_swiftly("steerbench.reward_training.reward_run")
    from steerbench.cli import stages
    from steerbench.reward_training.reward_folder import verdicts
    from steerbench.reward_training.reward_run import RewardTraining, train_reward

    settings = RewardTraining(
        backbone=backbone,
        task=task,
        data=data,
        block=block,
        finetune=finetune,
        length_neutral=length_neutral,
        max_tokens=max_tokens,
        half=half,
        n_train=n_train,
        n_examples=n_examples,
        states=states,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        threads=threads,
    )
    with stages.shown(err) as progress:
        manifest = train_reward(settings, folder, progress)
    _show(manifest)
    for verdict in verdicts(manifest):
        complain(verdict)
    say(f"written: {folder}")


@app.command()
def check(
    rewards: Annotated[list[str], typer.Argument(help="Reward models: folders, or org/name[@revision] of the Hub.")],
    task: Annotated[str, typer.Option(help="Task on whose held-out pairs they are checked.")] = "hh_rlhf",
    data: Annotated[
        Path | None, typer.Option(help="File or folder in the task's original schema; default: the Hub.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Leave out longer pairs: dialogue and reply.", min=2)] = 256,
    n_examples: Annotated[int | None, typer.Option(help="Most held-out pairs; default: all.", min=2)] = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(help="Replies at once.", min=1)] = 16,
    threads: Threads = None,
    plugin: Plugins = None,
) -> None:
    """Say how good rewards are on a task's held-out pairs, beside "longer wins", and how two of them agree."""
    add_plugins(plugin)
    check_names(tasks=task)
    import_swiftly("steerbench.reward_training.reward_check")
    from steerbench.cli import stages
    from steerbench.reward_training.reward_check import RewardCheck, check_rewards
    from steerbench.reward_training.reward_folder import verdicts

    settings = RewardCheck(
        rewards=rewards,
        task=task,
        data=data,
        max_tokens=max_tokens,
        n_examples=n_examples,
        device=device,
        batch_size=batch_size,
        threads=threads,
    )
    with stages.shown(err) as progress:
        found = check_rewards(settings, progress)
    for name, figures in found["rewards"].items():
        _table(f"{name}; {task}, {figures['held out']['pairs']:,} held-out pairs", figures)
        for verdict in verdicts(figures):
            complain(verdict)
    if found["agreement"]:
        _print("agreement of the two", found["agreement"])
    for reason, count in found["left out"].items():
        say(f"left out: {count:,} ({reason})")


def _show(manifest: Mapping[str, Any]) -> None:
    about = f"block {manifest['block']}, {manifest['pairs']['train']:,} pairs; held out: {manifest['pairs']['test']:,}"
    _table(about, manifest)


def _table(about: str, found: Mapping[str, Any]) -> None:
    """Print the figures of held-out pairs and of probes."""
    held = {name: value for name, value in found["held out"].items() if name not in ("pairs", "groups")}
    _print(about, {**held, **{f"preferred over {name}": value for name, value in found["probes"].items()}})


def _print(about: str, figures: Mapping[str, Any]) -> None:
    from steerbench.reward_training.reward_folder import shown

    say(about, "bold")
    columns: Columns = {"figure": list(figures), "value": [shown(value) for value in figures.values()]}
    print_table(out, "", columns, names="figure")
