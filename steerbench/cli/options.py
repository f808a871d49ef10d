"""Options that several commands have, and how their text is read."""

from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steerbench.errors import SteerbenchError

if TYPE_CHECKING:
    from steerbench.models.pieces import BatchSize as BatchSizes

Methods = Annotated[
    str, typer.Option("--methods", "--method", help="Methods, such as 'caa:strength=2,caa+static_prompt'.")
]
Model = Annotated[
    str, typer.Option("--model", help="Language model: a folder, org/name[@revision] of the Hub, or testbed.")
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="File or folder in the task's original schema; default: the testbed's, or the Hub."),
]
RewardOption = Annotated[
    str | None,
    typer.Option("--reward-model", help="Reward model that methods may learn from: folder or Hub name."),
]
Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="A file with a method or a task; repeatable.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
DeviceMap = Annotated[
    str | None,
    typer.Option("--device-map", help="auto: spread the language model over all GPUs (accelerate)."),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
NTrain = Annotated[int, typer.Option(help="Training examples that methods may learn from.", min=1)]
Tune = Annotated[
    int, typer.Option(help="Trials per method on the validation split; 0: hyperparameters as given.", min=0)
]
MaxNew = Annotated[int, typer.Option(help="Most tokens of a response.", min=1)]
MaxPrompt = Annotated[
    int | None, typer.Option(help="Leave out longer prompts; default: what the context allows.", min=1)
]
ThinkingOption = Annotated[
    str,
    typer.Option(
        "--thinking",
        help="Thoughts of models that have them: off, strip (the answer is scored), keep (both are).",
    ),
]
BatchSize = Annotated[
    str,
    typer.Option(
        help="Most prompts at once, or auto: 32 on a CPU, by its memory on a GPU. In float32 it changes no score of a "
        "fitted steering."
    ),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: measured at the start.", min=1)]


MOST_SEEDS = 1000
"""A range of more is a slip of the hand: each seed is a run of its own."""


def add_plugins(paths: list[Path] | None) -> None:
    """Register the files given with --plugin."""
    from steerbench.plugins.registry import add_plugin

    for path in paths or []:
        add_plugin(path)


def check_names(*, methods: str | None = None, tasks: str | None = None) -> None:
    """Raise SteerbenchError for a list that cannot be read, or an unknown name in it. Nothing heavy is imported."""
    from steerbench.plugins.spec import check_names

    if methods is not None:
        check_names("methods", methods, "" if tasks is None else "--task")
    if tasks is not None:
        check_names("tasks", tasks, "" if methods is None else "--methods")


def words(text: str, what: str, example: str) -> list[str]:
    """Return the words of an option, separated by commas, each once. Raises SteerbenchError if there is none."""
    found = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise SteerbenchError(f"--{what} is empty; give one or more, separated by commas, such as {example}.")
    return found


def strengths(text: str | None) -> tuple[float, ...]:
    """Return the numbers of --strength. Raises SteerbenchError if one is none."""
    if text is None:
        return ()
    try:
        found = tuple(float(word) for word in words(text, "strength", "1,2,4"))
    except ValueError:
        found = (nan,)
    if not all(map(isfinite, found)):
        raise SteerbenchError(f"--strength {text!r} must be numbers separated by commas, such as 1,2,4 or 0.5.")
    return found


def numbers(text: str) -> tuple[int, ...]:
    """Return the whole numbers of --seeds, each `0-2` with both ends.

    Raises SteerbenchError if one is none, and for more than `MOST_SEEDS`.
    """
    try:
        ranges = [_counted(word) for word in words(text, "seeds", "0,1,2")]
    except ValueError:
        raise SteerbenchError(
            f"--seeds {text!r} must be whole numbers separated by commas, or ranges: 0,1,2 or 0-2; 3 is the one seed 3."
        ) from None
    if any(each.stop > 2**63 for each in ranges) or sum(map(len, ranges)) > MOST_SEEDS:
        raise SteerbenchError(
            f"--seeds {text!r} are too many or too large; give up to {MOST_SEEDS} numbers below 2**63: every seed fits "
            f"and measures each method anew."
        )
    return tuple(number for each in ranges for number in each)


def rows_at_once(text: str) -> "BatchSizes":
    """Return the number of --batch-size, or `auto`. Raises SteerbenchError for what is neither."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise SteerbenchError(f"--batch-size {text!r} must be auto, or a whole number of 1 or more.")
    return int(text)


def _counted(word: str) -> range:
    """Return the numbers of a range such as `0-2`, or of one number. Raises ValueError for what is neither."""
    first, _, last = word.rpartition("-")
    if not first:
        return range(int(word), int(word) + 1)
    if int(first) > int(last):
        raise ValueError(f"{word} counts backwards")
    return range(int(first), int(last) + 1)
