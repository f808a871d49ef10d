"""Progress reporting: the engine says how far it is, the caller decides how that looks."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]

AT_MOST = " (at most)"
"""Ends the label of a stage that may be over before its total: nobody knows how long it takes."""


class Progress(Protocol):
    """`with progress("generate", total) as advance: advance(n)`."""

    def __call__(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """Open a bar with a label and a number of units."""


@contextmanager
def silent(label: str, total: int) -> Iterator[Advance]:
    """Report nothing."""
    yield lambda n: None
