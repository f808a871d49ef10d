"""The two streams that commands write to."""

from rich.console import Console

out = Console(emoji=False)  # a response may well hold `:smile:`
err = Console(emoji=False, stderr=True)


def say(text: str) -> None:
    """Print a line as it is: not wrapped, because it may go to a file, and without mark-up."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def complain(text: str) -> None:
    """Print a mistake or a failure, in red."""
    err.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
