"""Ctrl-C, and the signal with which a scheduler ends a job: no traceback, and how to go on."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ANEW = "Nothing is kept; the same command begins anew."
_KEPT = {
    "run": "Finished records are kept; the same command goes on from there.",
    "judge": "Replies so far are kept; the same command goes on from there.",
    "reward": "States so far are kept; the same command goes on from there.",
    "latency": _ANEW,
    "check": _ANEW,
    "testbed": _ANEW,
}
_came: list[KeyboardInterrupt] = []
"""What signals were turned into. A library that waits in C may raise a plain KeyboardInterrupt in place of it."""
_SHOW_CURSOR = "\033[?25h"


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what is done at Ctrl-C is done, and the exit status says which it was."""


@contextmanager
def handled() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into exceptions, or, during an import, into the end of the process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _end)
    try:
        yield
    finally:
        _came.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def as_it_came(interruption: KeyboardInterrupt) -> KeyboardInterrupt:
    """Return what the latest signal was turned into, or what was raised where there was none."""
    return _came[-1] if _came else interruption


def farewell(command: str | None, interruption: KeyboardInterrupt | None = None) -> str:
    """Return the sentence about an interrupted command: what is kept, and how to go on."""
    what = "ended by SIGTERM" if isinstance(interruption, Terminated) else "interrupted"
    return f"{what}. {_KEPT.get(command or '', '')}".rstrip()


def status(interruption: KeyboardInterrupt) -> int:
    """Return the exit status: 128 and the number of the signal."""
    return 128 + (signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT)


def _end(number: int, frame: FrameType | None) -> None:
    interruption = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
    _came.append(interruption)
    if not _importing(frame):
        raise interruption
    # Half-imported modules turn an exception into another, or lose it with a traceback.
    command = next((word for word in sys.argv[1:] if word in _KEPT), None)
    cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""
    os.write(2, f"{cursor}{farewell(command, interruption)}\n".encode())
    os._exit(status(interruption))


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
