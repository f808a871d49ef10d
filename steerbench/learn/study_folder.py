"""What methods share, kept for other processes and later runs, in a folder that any file system can hold.

Each result lies in a folder of its own, named by the hash of all that determines it. Its files are of some MiB and
never change; the last one to appear lists the others. So whoever reads finds a result whole or not at all, nothing is
locked, and two who compute the same write the same.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

from steerbench.errors import SteerbenchError
from steerbench.files import write_whole
from steerbench.records.identity import fingerprint

T = TypeVar("T")
INDEX = "index.json"
_BEAT, _LOOK = 5.0, 0.5
"""Seconds after which who computes says so again, and after which who waits looks again."""
_PATIENCE = 60.0
"""Seconds of silence after which one who computes has gone."""


class StudyFolder:
    """Results by their keys: plain JSON that names everything a result depends on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def once(
        self,
        name: str,
        key: Mapping[str, Any],
        read: Callable[[Path], T],
        write: Callable[[Path], list[str]],
    ) -> T:
        """Return a result, read from its folder, which `write` has filled if it was not there.

        `write` returns the names of its files. Whoever comes while another process computes waits for it, unless that
        falls silent. Raises SteerbenchError if nothing can be written.
        """
        folder = self.path / f"{name}-{fingerprint(key)[:32]}"
        while not is_whole(folder):
            with self._claimed(folder) as mine:
                if mine and not is_whole(folder):  # it may have come between the two looks
                    _fill(folder, key, write)
        return read(folder)

    @contextmanager
    def _claimed(self, folder: Path) -> Iterator[bool]:
        """Say whether this process is to compute, and keep others from it meanwhile; otherwise wait for the other."""
        claim = folder.with_name(f"{folder.name}.claim")
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            mine = _take(claim)
        if not mine:
            _wait(folder, claim)
            yield False
            return
        over = Event()
        beat = Thread(target=_say_so, args=(claim, over), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            over.set()
            beat.join()
            claim.unlink(missing_ok=True)


def is_whole(folder: Path) -> bool:
    """Tell whether a result is there: its list of files, and each of them as long as it was."""
    try:
        files = json.loads((folder / INDEX).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _fill(folder: Path, key: Mapping[str, Any], write: Callable[[Path], list[str]]) -> None:
    with _writing(folder):
        folder.mkdir(exist_ok=True)
    names = write(folder)
    with _writing(folder):
        sizes = {name: (folder / name).stat().st_size for name in names}
        write_whole(folder / INDEX, json.dumps({"key": key, "files": sizes}, indent=1))


def _take(claim: Path) -> bool:
    try:
        with claim.open("x", encoding="utf-8") as file:
            file.write(_words_of(0))
    except FileExistsError:
        return False
    return True


def _say_so(claim: Path, over: Event) -> None:
    for n in count(1):
        if over.wait(_BEAT):
            return
        with suppress(OSError):
            claim.write_text(_words_of(n), encoding="utf-8")


def _words_of(n: int) -> str:
    return f"{platform.node()} {os.getpid()} {n}"


def _wait(folder: Path, claim: Path) -> None:
    """Return when a result is there or the claim is gone; that of one who has gone is taken away.

    Clocks of machines differ, so what counts is whether the claim changes, by the clock of this one.
    """
    said, since = _words(claim), time.monotonic()
    while claim.exists() and not is_whole(folder):
        if _has_ended(said) or time.monotonic() - since > _PATIENCE:
            claim.unlink(missing_ok=True)
            return
        time.sleep(_LOOK)
        if (now := _words(claim)) != said:
            said, since = now, time.monotonic()


def _words(claim: Path) -> str:
    with suppress(OSError):
        return claim.read_text(encoding="utf-8")
    return ""


def _has_ended(words: str) -> bool:
    """Tell whether a claim is of a process of this machine that has ended; of others nothing is known."""
    machine, _, rest = words.partition(" ")
    pid = rest.partition(" ")[0]
    if machine != platform.node() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        return False
    return False


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SteerbenchError(
            f"cannot keep what methods share in {folder}: {error.strerror or error}; free some space, or name another "
            f"folder with --shared."
        ) from error


def write_file(folder: Path, name: str, content: bytes | str) -> None:
    """Write a file of a result. Raises SteerbenchError if it cannot be written."""
    with _writing(folder):
        write_whole(folder / name, content)
