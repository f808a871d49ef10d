"""How far the work is: bars on a terminal, and elsewhere a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Event, RLock, Thread

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from steerbench.cli.console import note, visible
from steerbench.progress import AT_MOST, Advance, Progress

LASTING = 1.0
"""Seconds after which a stage is worth a line."""
LASTING_INSIDE = 10.0
"""The same for a stage inside another."""
APART = 30.0
"""Seconds between two lines on a stage that goes on."""


@contextmanager
def shown(console: Console) -> Iterator[Progress]:
    """Show each stage of the work while it lasts."""
    with (_bars if console.is_terminal else _lines)(console) as progress:
        yield progress


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True) as bars:

        @contextmanager
        def progress(label: str, total: int) -> Iterator[Advance]:
            task = bars.add_task(visible(label), total=total)
            try:
                yield lambda n: bars.advance(task, n)
            finally:
                bars.remove_task(task)

        yield progress


@contextmanager
def _lines(console: Console) -> Iterator[Progress]:
    log, over = StageLog(partial(note, console)), Event()
    beat = Thread(target=_beat, args=(log, over), daemon=True)
    beat.start()
    try:
        yield log.stage
    finally:
        over.set()
        beat.join()


def _beat(log: "StageLog", over: Event) -> None:
    """Let a log speak while the work is silent: one step of it may take an hour."""
    while not over.wait(min(1.0, LASTING)):
        log.beat()


@dataclass
class _Stage:
    label: str
    total: int
    began: float
    done: int = 0
    told: bool = False
    origin: tuple[float, int] = (0.0, 0)
    """From when, and from which unit, time is counted: what was found from before took none."""
    latest: float = 0.0
    """When the latest units were done."""
    step: int = 0
    """How many these were."""

    @property
    def left(self) -> int:
        return self.total - self.done

    def past(self, now: float) -> str:
        """Return what is done of it, and in which time."""
        return f"{self.label}: {self.done} of {self.total}, {duration(now - self.began)}"

    def line(self, now: float) -> str:
        """Return what is done of it, in which time, and about how long the rest takes, where that is known."""
        text, counted = self.past(now), self.done - self.origin[1]
        if not self.left or counted <= 0:
            return text
        if self.label.endswith(AT_MOST):
            return f"{text}; {self.left} left"
        each = (self.latest - self.origin[0]) / counted
        rest = max(each * self.left - (now - self.latest), each * (self.left - self.step))
        return f"{text}; {self.left} left" + (f", about {duration(rest)}" if rest > 0 else "")


@dataclass
class StageLog:
    """Lines about stages, which may lie inside one another: each when it begins and ends, and seldom in between."""

    write: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _stages: list[_Stage] = field(default_factory=list)
    _spoke: float = 0.0
    _lock: RLock = field(default_factory=RLock)

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Advance]:
        """Open a stage with a number of units. One that ends with an error has no last line: the error is told."""
        now = self.clock()
        stage = _Stage(label, total, now, origin=(now, 0), latest=now)
        with self._lock:
            self._stages.append(stage)
        try:
            yield partial(self._advance, stage)
            with self._lock:
                if stage.told:
                    self._say(stage.past(self.clock()))
        finally:
            with self._lock:
                self._stages.remove(stage)

    def beat(self) -> None:
        """Say what is worth a line by now."""
        with self._lock:
            now = self.clock()
            for inside, stage in enumerate(self._stages):
                if not stage.told and now - stage.began >= (LASTING_INSIDE if inside else LASTING):
                    stage.told = True
                    self._say(stage.line(now))
            told = [stage for stage in self._stages if stage.told]
            if told and now - self._spoke >= APART:
                self._say(" | ".join(stage.line(now) for stage in told))

    def _advance(self, stage: _Stage, n: int) -> None:
        with self._lock:
            now = self.clock()
            stage.done, stage.step, stage.latest = stage.done + n, n, now
            self.beat()
            if now - stage.began < LASTING:
                stage.origin = (now, stage.done)
            elif stage is self._stages[0] and stage.left and self._spoke < now and stage.done - n == stage.origin[1]:
                self._say(stage.line(now))  # the first one measured: from now on there is an estimate

    def _say(self, line: str) -> None:
        self._spoke = self.clock()
        self.write(line)


def duration(seconds: float) -> str:
    """Return a time in the unit that it is told in."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
