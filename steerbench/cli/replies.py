"""Replies to prompts, one below the other or side by side, with the KL of each to the unsteered model."""

from collections.abc import Iterator, Sequence
from math import isnan

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from steerbench.bench.try_out import Sample
from steerbench.cli.console import note, plain
from steerbench.cli.layout import remark
from steerbench.plugins.spec import UNSTEERED

NARROWEST = 28
"""Characters of a column in which a reply can be read."""
KL = "KL: of the steered against the unsteered model, mean over the tokens of the reply, in nats."


def show_below(console: Console, shown: Sequence[Sample]) -> None:
    """Print the replies of each method below its name."""
    for one in shown:
        note(console, f"{one.method}  ({one.strength})" if one.strength else one.method, "bold")
        for kl, reply in _replies(one, shown[0]):
            note(console, f"  {kl}  {reply}" if kl else f"  {reply}")
    _explain(console, shown)


def fits_beside(console: Console, shown: Sequence[Sample]) -> bool:
    """Say whether there are several methods, and room for a column for each."""
    return len(shown) > 1 and console.width >= NARROWEST * len(shown)


def show_beside(console: Console, prompts: Sequence[str], shown: Sequence[Sample]) -> None:
    """Print a table for each prompt, with a column for each method."""
    columns = [list(_replies(one, shown[0])) for one in shown]
    for prompt, row in zip(prompts, zip(*columns, strict=True), strict=True):
        table = Table(title=plain(prompt), title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for head in _heads([(one.method, one.strength, kl) for one, (kl, _) in zip(shown, row, strict=True)]):
            table.add_column(plain(head), ratio=1, overflow="fold", vertical="top")
        table.add_row(*(plain(reply) for _, reply in row))
        console.print(table)
        console.print()
    _explain(console, shown)


def _heads(texts: Sequence[Sequence[str]]) -> list[str]:
    """Return the head of each column: texts below each other, without empty ones, names side by side at the top."""
    heads = [[text for text in of_one if text] for of_one in texts]
    most = max(map(len, heads))
    return ["\n".join(head + [""] * (most - len(head))) for head in heads]


def _replies(one: Sample, plain: Sample) -> Iterator[tuple[str, str]]:
    """Yield the KL of each reply of a method, empty for the unsteered model, and what is shown of its text."""
    for response, kl, unsteered in zip(one.responses, one.kl, plain.responses, strict=True):
        if one.method == UNSTEERED:
            yield "", response.text or "(empty)"
        else:
            equal = response.text == unsteered.text
            known = "KL not known" if isnan(kl) else f"KL {kl:.3f}"
            yield known, "(equal to the unsteered reply)" if equal else response.text or "(empty)"


def _explain(console: Console, shown: Sequence[Sample]) -> None:
    if len(shown) > 1:
        remark(console, KL)
