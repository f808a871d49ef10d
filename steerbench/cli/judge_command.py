"""`steerbench judge`."""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steerbench.cli.console import err, out, say, tell
from steerbench.errors import SteerbenchError

if TYPE_CHECKING:
    import pandas as pd

    from steerbench.cli.layout import Columns
    from steerbench.judge import Cost, Question, Replies
    from steerbench.judge.client import Endpoint
    from steerbench.judge.judgements import Pair


def judge(
    folders: Annotated[list[Path], typer.Argument(help="Folders with records.")],
    endpoint: Annotated[str, typer.Option(help="OpenAI-compatible server, such as http://localhost:8000/v1.")],
    judge_model: Annotated[str, typer.Option(help="Name of the judge, as the server knows it.")],
    against: Annotated[str, typer.Option(help="The method that every other is held against.")] = "unsteered",
    n: Annotated[int, typer.Option("--n", help="Test prompts of each task, the same for every method.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Which test prompts are drawn.", min=0)] = 0,
    methods: Annotated[
        str | None,
        typer.Option("--methods", "--method", help="Judge these methods alone, named as in the leaderboard."),
    ] = None,
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable with the API key; none is sent without.")
    ] = "OPENAI_API_KEY",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before calls are made.")] = False,
    price_in: Annotated[float | None, typer.Option(help="USD per million prompt tokens.", min=0)] = None,
    price_out: Annotated[float | None, typer.Option(help="USD per million reply tokens.", min=0)] = None,
    workers: Annotated[int, typer.Option(help="Calls at once. It changes no result.", min=1)] = 8,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for replies and win rates; default: judgements in the first.")
    ] = None,
) -> None:
    """Let a language model judge responses beside those of the unsteered model, in both orders."""
    from steerbench.judge import Replies, cost
    from steerbench.judge.client import connect
    from steerbench.judge.judgements import WIN_RATES, pairs, win_rates
    from steerbench.plugins.spec import parse
    from steerbench.records.leaderboard import write_csv
    from steerbench.records.store import records_in

    server = connect(endpoint, judge_model, api_key_env)
    chosen = [str(spec) for spec in parse(methods)] if methods else []
    judged = pairs(records_in(folders), against=against, n=n, seed=seed, methods=chosen)
    questions = [question for pair in judged for question in pair.questions]
    folder = folder or folders[0] / "judgements"
    replies = Replies(folder)
    expected = cost(questions, judge_model, replies)
    for line in _short(judged, n):
        tell(line)
    tell(_cost_line(expected, judged, price_in, price_out))
    _confirm(yes or not expected.calls)
    _ask(questions, server, replies, workers)
    table = win_rates(judged, judge_model, replies, against=against, seed=seed)
    write_csv(table, folder / WIN_RATES)
    _show(table, f"All columns are in {folder / WIN_RATES}.")
    kept = f", every reply in {replies.path}" if replies.path.exists() else ""
    say(f"all columns in {folder / WIN_RATES}{kept}.")


def _short(judged: "Sequence[Pair]", n: int) -> Iterator[str]:
    """Yield a line for each task that has fewer test prompts than are to be judged."""
    for task in dict.fromkeys(pair.task for pair in judged):
        there = len({pair.id for pair in judged if pair.task == task})
        if there < n:
            yield f"{task}: --n is {n}, and there are {there} test prompts; all of them are taken."


def _cost_line(expected: "Cost", judged: "Sequence[Pair]", price_in: float | None, price_out: float | None) -> str:
    from steerbench.judge import ASKED

    calls, prompts, most = expected
    if not calls:
        equal = sum(not pair.questions for pair in judged)
        return f"no call to make: {equal} pairs are equal, {len(judged) - equal} were asked about before."
    told = (
        f"{len(judged)} pairs in both orders, less equal responses and what is known: {calls} calls to make, about "
        f"{prompts} prompt tokens (characters / 4), at most {most} reply tokens"
    )
    if price_in is not None:
        told += f"; USD {price_in * prompts / 1e6:.2f} for prompts"
    if price_out is not None:
        told += f"; at most USD {price_out * most / 1e6:.2f} for replies"
    return f"{told}. Replies without a verdict are asked for again: up to {ASKED} times all this, if none has one."


def _confirm(sure: bool) -> None:
    if sure:
        return
    if not _on_terminal():
        raise SteerbenchError("nothing was asked: calls may cost money. Give --yes to make them without a question.")
    if not typer.confirm("Make these calls?", err=True):
        raise typer.Exit(1)


def _on_terminal() -> bool:
    return sys.stdin.isatty()


def _ask(questions: "list[Question]", server: "Endpoint", replies: "Replies", workers: int) -> None:
    from steerbench.cli import stages
    from steerbench.judge import ask

    with stages.shown(err) as progress:
        failures = ask(questions, server, replies, workers=workers, progress=progress)
    for reason, times in failures.most_common(3):
        tell(f"no verdict on {times} questions: {reason}")


def _show(table: "pd.DataFrame", elsewhere: str) -> None:
    from steerbench.cli.layout import print_table, remark

    for task, rows in table.groupby("task", sort=True):
        title = f"{task}: win rate over {rows['against'].iloc[0]}, by {rows['judge_model'].iloc[0]}"
        yields = ("equal", "first", "failed", "n", "agree")
        print_table(out, title, _cells(rows), yields=yields, elsewhere=elsewhere)
        out.print()
    remark(
        out,
        "agree: share of pairs on which both orders agree; first: share of the response shown first among verdicts "
        "that are no tie; failed: pairs without both verdicts, left out; equal: equal responses, ties unseen.",
    )


def _cells(rows: "pd.DataFrame") -> "Columns":
    from pandas import isna

    from steerbench.cli.layout import between, number

    ends = zip(rows["low"], rows["high"], strict=True)
    return {
        "method": list(rows["method"]),
        "win": list(map(number, rows["win_rate"])),
        "95 % interval": ["–" if isna(low) else partial(between, low, high) for low, high in ends],
        "n": list(map(str, rows["n"])),
        "agree": list(map(number, rows["consistency"])),
        "first": list(map(number, rows["first"])),
        "failed": list(map(str, rows["failed"])),
        "equal": list(map(str, rows["identical"])),
    }
