"""`steerbench list`, `leaderboard` and `generate`."""

from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from steerbench.cli.console import err, out, say
from steerbench.cli.options import Data, Device, Dtype, MaxNew, Methods, Model, NTrain, Plugins, add_plugins
from steerbench.errors import SteerbenchError
from steerbench.testbed import NAME as TESTBED

if TYPE_CHECKING:
    from steerbench.registry import Source
    from steerbench.sample import Sample


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
        say(indent(card(source), "  "))
    except SteerbenchError as error:  # a broken one hides no other
        out.print(f"  no card: {error}", style="dim", markup=False, highlight=False, soft_wrap=True)
    out.print()


def leaderboard(
    folders: Annotated[list[Path], typer.Argument(help="Folders with records.")],
    csv: Annotated[Path | None, typer.Option(help="Write the table, with all columns, to this file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write Markdown to this file; between marks, if it has them.")
    ] = None,
) -> None:
    """Rank the records in folders. Refuses to rank what was not measured alike."""
    from steerbench import tables
    from steerbench.markdown import write_markdown
    from steerbench.ranking import leaderboard as rank
    from steerbench.ranking import write_csv
    from steerbench.records import records_in

    records = records_in(folders)
    table = rank(records)
    tables.show(out, table, records)
    for path, write in ((csv, write_csv), (markdown, write_markdown)):
        if path:
            write(table, path)
            say(f"written: {path}")


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
    seed: Annotated[int, typer.Option(help="Of the fit, and of the draws.", min=0)] = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    show_pairs: Annotated[bool, typer.Option("--show-pairs", help="Also show the pairs that a method wrote.")] = False,
    plugin: Plugins = None,
) -> None:
    """Show what methods make of prompts, beside the unsteered model."""
    add_plugins(plugin)
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
                say(f"  {response.text or '(empty)'}")
            if show_pairs:
                tables.show_pairs(out, report)
