"""The command line: reads options, calls the library, prints. Nothing heavy is imported before it is needed."""

import errno
import keyword
import sys
from io import TextIOWrapper
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from steerbench import __version__
from steerbench.errors import SteerbenchError
from steerbench.testbed import NAME as TESTBED
from steerbench.testbed.commands import app as testbed

if TYPE_CHECKING:
    from steerbench.harness import Outcome
    from steerbench.protocol import Protocol
    from steerbench.registry import Source
    from steerbench.sample import Sample

out = Console(emoji=False)  # a response may well hold `:smile:`
err = Console(emoji=False, stderr=True)


class _Commands(TyperGroup):
    """A user's mistake ends with 2 and one sentence, an interruption with 130; anything else is a bug: a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SteerbenchError as error:
            _complain(f"error: {error}")
            raise typer.Exit(2) from error
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
                raise
            from steerbench.machine import OUT_OF_MEMORY

            _complain(f"error: {OUT_OF_MEMORY}")
            raise typer.Exit(2) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _complain(f"error: {error.strerror}; free some space and run the same command again.")
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            kept = " Finished records are kept; the same command goes on from there."
            err.print(f"interrupted.{kept if ctx.invoked_subcommand == 'run' else ''}", style="yellow", soft_wrap=True)
            raise typer.Exit(130) from None


def _complain(text: str) -> None:
    err.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


app = typer.Typer(
    name="steerbench",
    cls=_Commands,
    help="Which steering method for your language model, and what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
new = typer.Typer(help="Begin a plugin.", no_args_is_help=True)
app.add_typer(new, name="new")
app.add_typer(testbed, name="testbed")

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
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
NTrain = Annotated[int, typer.Option(help="Training examples that methods may learn from.", min=1)]
Tune = Annotated[
    int, typer.Option(help="Trials per method on the validation split; 0: hyperparameters as given.", min=0)
]
MaxNew = Annotated[int, typer.Option(help="Most tokens of a response.", min=1)]
MaxPrompt = Annotated[
    int | None, typer.Option(help="Leave out longer prompts; default: what the context allows.", min=1)
]
BatchSize = Annotated[
    int, typer.Option(help="Prompts at once. In float32 it changes no score of a fitted steering.", min=1)
]


@app.command()
def run(
    methods: Methods = "re_control,static_prompt,caa",
    model: Model = TESTBED,
    reward_model: RewardOption = None,
    tasks: Annotated[str, typer.Option("--tasks", "--task", help="Tasks, separated by commas.")] = "hh_rlhf",
    data: Data = None,
    held_out_reward: Annotated[str | None, typer.Option(help="Reward model that only scores.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Sentence encoder for coherence.")] = None,
    n_examples: Annotated[int, typer.Option(help="Test prompts.", min=1)] = 256,
    n_train: NTrain = 512,
    tune: Tune = 0,
    n_validation: Annotated[int, typer.Option(help="Validation prompts that tuning scores on.", min=1)] = 128,
    transductive: Annotated[
        bool, typer.Option("--transductive", help="Let methods write their pairs from the test prompts.")
    ] = False,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    max_prompt_tokens: MaxPrompt = None,
    max_new_tokens: MaxNew = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 switches off.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="1 switches off.")] = 1.0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 16,
    folder: Annotated[Path, typer.Option("--out", help="Folder for records.")] = Path("runs"),
    plugin: Plugins = None,
) -> None:
    """Measure methods on tasks, write records, and print the leaderboard. Without options, on the testbed."""
    _add_plugins(plugin)
    from steerbench.protocol import Decoding, Protocol

    decoding = Decoding(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    protocols = [
        Protocol(
            task=task,
            model=model,
            reward_model=reward_model,
            held_out_reward=held_out_reward,
            encoder=encoder,
            data=data,
            n_examples=n_examples,
            n_train=n_train,
            tuning_budget=tune,
            n_validation=n_validation,
            transductive=transductive,
            max_prompt_tokens=max_prompt_tokens,
            decoding=decoding,
            seeds=_numbers(seeds),
            dtype=dtype,
        )
        for task in _words(tasks, "tasks", "hh_rlhf,shp")
    ]
    _run(protocols, methods, folder, device, batch_size)


def _run(protocols: "list[Protocol]", methods: str, folder: Path, device: str, batch_size: int) -> None:
    from steerbench import registry, tables
    from steerbench.bench import Options
    from steerbench.harness import plan
    from steerbench.harness import run as measure

    plan(methods)  # mistakes in the names first
    for protocol in protocols:
        registry.load("tasks", protocol.task)
    outcomes: list[Outcome] = []
    try:
        with tables.bars(err) as progress:
            options = Options(out=folder, device=device, batch_size=batch_size, progress=progress)
            for protocol in protocols:
                outcomes.append(measure(protocol, methods, options))
    finally:  # the tasks done before an error or Ctrl-C are worth seeing
        if outcomes:
            _report(outcomes, folder)
    if any(outcome.failures for outcome in outcomes):
        raise typer.Exit(2)


def _report(outcomes: "list[Outcome]", folder: Path) -> None:
    from steerbench import tables
    from steerbench.ranking import csv_name, leaderboard, write_csv

    records = [record for outcome in outcomes for record in outcome.records]
    table = leaderboard(records)
    tables.show(out, table, records)
    for failure in (failure for outcome in outcomes for failure in outcome.failures):
        _complain(f"failed: {failure.method} (seed {failure.seed}): {failure.message}")
    csv = folder / csv_name(records)
    write_csv(table, csv)
    found = sum(outcome.found for outcome in outcomes)
    _say(f"{len(records)} records in {folder}, {found} of them from before; all columns in {csv}.")


def _say(text: str) -> None:
    """Print a line as it is: not wrapped, because it may go to a file, and without mark-up."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


@app.command("list")
def list_(
    kind: Annotated[Literal["methods", "tasks", "all"], typer.Argument(help="What to list.")] = "all",
    long: Annotated[bool, typer.Option("--long", help="Show the card of each: what it does, at what cost.")] = False,
) -> None:
    """List methods and tasks, and where each comes from."""
    from steerbench.registry import KINDS, sources

    for name in KINDS:
        if kind in (name, "all"):
            out.print(name, style="bold", end="\n\n" if long else "\n")
            for source in sources(name):
                if long:
                    _show_card(source)
                else:
                    _show_source(source, "  ")


def _show_source(source: "Source", margin: str = "") -> None:
    origin = Text(source.origin, style="dim")
    out.print(f"{margin}{source.name} ", origin, markup=False, highlight=False, soft_wrap=True)


def _show_card(source: "Source") -> None:
    from steerbench.cards import card

    _show_source(source)
    try:
        _say(indent(card(source), "  "))
    except SteerbenchError as error:  # a broken one hides no other
        out.print(f"  no card: {error}", style="dim", markup=False, highlight=False, soft_wrap=True)
    out.print()


@app.command()
def leaderboard(
    folders: Annotated[list[Path], typer.Argument(help="Folders with records.")],
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
) -> None:
    """Rank the records in folders. Refuses to rank what was not measured alike."""
    from steerbench import tables
    from steerbench.ranking import leaderboard as rank
    from steerbench.ranking import write_csv
    from steerbench.records import Store

    records = [record for folder in folders for record in Store(folder).records()]
    table = rank(records)
    tables.show(out, table, records)
    if csv:
        write_csv(table, csv)
        _say(f"written: {csv}")


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="Prompts, each in quotes.")],
    methods: Methods,
    model: Model = TESTBED,
    reward_model: Annotated[str | None, typer.Option(help="For methods that learn from a reward.")] = None,
    task: Annotated[str, typer.Option(help="Task whose training examples methods learn from.")] = "hh_rlhf",
    data: Data = None,
    n_train: NTrain = 512,
    max_new_tokens: MaxNew = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.0,
    seed: int = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    show_pairs: Annotated[bool, typer.Option("--show-pairs", help="Also show the pairs that a method wrote.")] = False,
    plugin: Plugins = None,
) -> None:
    """Show what methods make of prompts, beside the unsteered model."""
    _add_plugins(plugin)
    from steerbench import tables
    from steerbench.protocol import Decoding
    from steerbench.sample import Sampling, sample

    settings = Sampling(
        model=model,
        reward_model=reward_model,
        task=task,
        data=data,
        n_train=n_train,
        decoding=Decoding(max_new_tokens=max_new_tokens, temperature=temperature),
        seed=seed,
        dtype=dtype,
        device=device,
    )
    shown: list[Sample] = []
    try:
        with tables.bars(err) as progress:
            for of_one_method in sample(prompts, methods, settings, progress):
                shown.append(of_one_method)
    finally:  # what was made before an error is worth seeing
        for method, responses, report in shown:
            out.print(method, style="bold", markup=False, highlight=False, soft_wrap=True)
            for response in responses:
                _say(f"  {response.text or '(empty)'}")
            if show_pairs:
                tables.show_pairs(out, report)


@new.command("method")
def new_method(name: Annotated[str, typer.Argument(help="Name of the method and of its file.")]) -> None:
    """Write a method file to start from."""
    from steerbench.registry import names
    from steerbench.template import METHOD

    path = Path(f"{name}.py")
    class_name = "".join(word.capitalize() for word in name.split("_"))
    if not (name.isascii() and class_name.isidentifier()) or keyword.iskeyword(name):
        raise SteerbenchError(f"{name!r} cannot name a method; use letters, digits and underscores, a letter first.")
    if name in names("methods") or path.exists():
        raise SteerbenchError(f"{path if path.exists() else name} exists; choose another name.")
    try:
        path.write_text(METHOD.replace("MyMethod", class_name), encoding="utf-8")
    except OSError as error:
        raise SteerbenchError(f"cannot write {path}: {error.strerror}; go to another folder.") from error
    _say(f"written: {path}. Next: steerbench check {path}")


@app.command()
def check(
    file: Annotated[str, typer.Argument(help="A Python file with a method, or a method as in --methods.")],
    family: Annotated[str | None, typer.Option(help="One model family; default: all.")] = None,
    plugin: Plugins = None,
) -> None:
    """Run the contract suite on a method and say which invariant it breaks."""
    _add_plugins(plugin)
    from steerbench import tables
    from steerbench.contract import check_method, families
    from steerbench.registry import add_plugin

    name = file
    if file.endswith(".py"):
        kind, name = add_plugin(file)
        if kind != "methods":
            raise SteerbenchError(f"{file} is a task; the contract suite checks methods.")
    with tables.bars(err) as progress:
        results = check_method(name, families(family), progress)
    if tables.show_checks(out, name, results):
        raise typer.Exit(2)


def _add_plugins(paths: list[Path] | None) -> None:
    from steerbench.registry import add_plugin

    for path in paths or []:
        add_plugin(path)


def _words(text: str, what: str, example: str) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise SteerbenchError(f"--{what} is empty; give one or more, separated by commas, such as {example}.")
    return words


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text, "seeds", "0,1,2"))
    except ValueError:
        raise SteerbenchError(f"--seeds {text!r} must be whole numbers separated by commas, such as 0,1,2.") from None


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        out.print(__version__, highlight=False)
        raise typer.Exit


def main() -> None:
    """Run the command line. What a terminal cannot encode is shown as `?`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()
