"""The two streams that commands write to, and what no text may do to a terminal."""

import unicodedata

import typer
from rich.console import Console
from rich.text import Text

out = Console(emoji=False)  # a response may well hold `:smile:`
err = Console(emoji=False, stderr=True)

_TURNS = frozenset("\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks of writing direction and of new lines: with them a text can look like another."""


def visible(text: str) -> str:
    r"""Return a text with its control characters written out, such as `\x1b`; newlines and tabs stay."""
    return "".join(_written_out(c) if _is_control(c) else c for c in text)


def plain(text: str, style: str = "") -> Text:
    """Return what rich prints as it is: without mark-up, control characters written out."""
    return Text(visible(text), style=style)


def say(text: str, style: str = "") -> None:
    """Print a line as it is: not wrapped, because it may go to a file, and without mark-up."""
    note(out, text, style)


def tell(text: str, style: str = "") -> None:
    """Print a line about the work, which is no result: to the other stream."""
    note(err, text, style)


def complain(text: str) -> None:
    """Print a mistake or a failure, in red."""
    tell(text, style="red")


def note(console: Console, text: str, style: str = "") -> None:
    """Print a line of any length, as it is."""
    console.print(plain(text, style), highlight=False, soft_wrap=True)


class Complaints:
    """Tells which records are left out, and lets the command end with status 2 where there were some."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, why: str) -> None:
        """Tell why a record is left out."""
        self.count += 1
        complain(f"left out: {why}")

    def close(self) -> None:
        """Raise typer.Exit if a record was left out: what was shown or written is not of all."""
        if self.count:
            raise typer.Exit(2)


def _is_control(c: str) -> bool:
    return c not in "\n\t" and (unicodedata.category(c) == "Cc" or c in _TURNS)


def _written_out(c: str) -> str:
    return f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}"
