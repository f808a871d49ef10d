"""`steerbench list`."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from textwrap import indent
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from steerbench.cli.console import out, plain, say
from steerbench.cli.layout import print_rows
from steerbench.cli.options import Plugins, add_plugins
from steerbench.errors import SteerbenchError, suggest

if TYPE_CHECKING:
    from steerbench.plugins.docstrings import Head
    from steerbench.plugins.plugin import Kind
    from steerbench.plugins.registry import Source

_TOUCHES = ("prompt", "activations", "logits", "choice of responses", "nothing")
_NARROW = len("reward at test")
"""Characters for what a method learns from, on a terminal: it is one word or two, and seldom more."""
_SILENT, _BROKEN = "not said in the card", "broken"


def list_(
    what: Annotated[
        str, typer.Argument(help="methods, tasks or all; or the name of one: what it does, and its settings.")
    ] = "all",
    long: Annotated[bool, typer.Option("--long", help="Show the whole card of each.")] = False,
    plugin: Plugins = None,
) -> None:
    """List methods and tasks, by what they touch and learn from, or show what there is to know about one."""
    add_plugins(plugin)
    from steerbench.plugins.plugin import KINDS
    from steerbench.plugins.registry import sources

    kinds = [kind for kind in KINDS if what in (kind, "all")]
    for kind in kinds:
        out.print(kind, style="bold", end="\n\n" if long else "\n")
        if long:
            for source in sources(kind):
                _show_card(source)
        else:
            _show_list(kind, sources(kind))
    if not kinds:
        _show_one(what)


def _show_list(kind: "Kind", found: Sequence["Source"]) -> None:
    """Print a line for each source, methods in groups by what they touch."""
    shown = [(source, *_read(source)) for source in found]
    order = [*(_TOUCHES if kind == "methods" else ()), _SILENT, _BROKEN]
    shown.sort(key=lambda row: order.index(row[1]) if row[1] in order else len(_TOUCHES))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(max_width=_NARROW if out.is_terminal else None)  # what it does needs the room
    table.add_column(overflow="fold")
    for touches, rows in groupby(shown, key=lambda row: row[1]):
        if kind == "methods" or touches == _BROKEN:
            table.add_row(plain(f"  {touches}", "italic"))
        for source, _, head in rows:
            table.add_row(*_cells(source, head))
    if kind == "methods":
        out.print("  by what they touch: name, what it learns from, what it does", style="dim")
    print_rows(out, table)


def _read(source: "Source") -> tuple[str, "Head | SteerbenchError"]:
    """Return the group of a source and the head of its card, or why there is none: a broken one hides no other."""
    from steerbench.plugins.declarations import declared
    from steerbench.plugins.docstrings import head

    try:
        found = head(source)
        declared(source)
    except SteerbenchError as error:
        return _BROKEN, error
    return found.touches or (_SILENT if source.kind == "methods" else ""), found


def _cells(source: "Source", head: "Head | SteerbenchError") -> Iterator[Text]:
    from steerbench.plugins.registry import BUILT_IN

    yield plain(f"    {source.name}")
    if isinstance(head, SteerbenchError):
        yield plain("")
        yield plain(str(head), "red")
        return
    yield plain(head.learns_from, "cyan")
    yield plain(head.summary) + plain("" if source.origin == BUILT_IN else f" ({source.origin})", "dim")


def _show_one(name: str) -> None:
    """Print what there is to know about the methods and tasks of a name. Raises SteerbenchError if there is none."""
    from steerbench.plugins.plugin import KINDS
    from steerbench.plugins.registry import names, sources

    name = _checked(name) if ":" in name else name
    found = [source for kind in KINDS for source in sources(kind) if source.name == name]
    if not found:
        known = [*KINDS, "all", *(known for kind in KINDS for known in names(kind))]
        raise SteerbenchError(suggest("method or task", name, known) + " A file of yours: --plugin FILE.")
    for source in found:
        _show_card(source)
        _show_settings(source)


def _checked(text: str) -> str:
    """Return the name in a text such as `caa:layer=3`. Raises SteerbenchError for a setting that it does not take."""
    from steerbench.plugins.registry import names
    from steerbench.plugins.spec import MethodSpec, build, build_task, parse_tasks

    part = parse_tasks(text)[0]
    if part.name in names("methods"):
        build(MethodSpec((part,)))
    elif part.name in names("tasks"):
        build_task(part)
    return part.name


def _show_settings(source: "Source") -> None:
    from steerbench.plugins.declarations import Setting, declared
    from steerbench.plugins.spec import Part

    try:
        settings = declared(source)
    except SteerbenchError as error:
        say(str(error), "red")
        return

    def meaning(one: Setting) -> str:
        off = "" if one.off is None else f"{one.off or 'empty'} switches the method off"
        searched = f"--tune draws from {', '.join(one.searched)}" if one.searched else ""
        return "; ".join(filter(None, (one.meaning, off, searched)))

    word = "hyperparameter" if source.kind == "methods" else "setting"
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head in (word, "default", "takes", "meaning"):
        table.add_column(head, overflow="fold")
    for one in settings:
        table.add_row(*map(plain, (one.name, one.default or "must be given", one.takes, meaning(one))))
    if settings:
        print_rows(out, table)
        example = next((one for one in settings if one.searched), settings[0])
        value = (example.searched or [example.default or "..."])[0]
        say(f"\nGiven as --{source.kind} '{Part(source.name, {example.name: value})}'")
    else:
        say(f"It has no {word}s.")


def _show_card(source: "Source") -> None:
    from steerbench.plugins.docstrings import card

    out.print(plain(f"{source.name}  ") + plain(source.origin, "dim"), highlight=False, soft_wrap=True)
    try:
        say(indent(card(source), "  "))
    except SteerbenchError as error:
        say(f"  no card: {error}", "dim")
    out.print()
