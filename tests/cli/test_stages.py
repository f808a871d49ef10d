"""What a log says of the work: a line where a stage begins and ends, few in between, and an estimate of the rest."""

import io
import time
from dataclasses import dataclass

import pytest
from rich.console import Console

from steerbench.cli import stages
from steerbench.cli.stages import StageLog, duration
from steerbench.progress import AT_MOST


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_run_of_four_records_line_by_line() -> None:
    """One was there before; the one in the middle generates for long."""
    lines: list[str] = []
    clock = Clock()
    log = StageLog(lines.append, clock)

    def wait(seconds: int) -> None:
        for _ in range(seconds):
            clock.now += 1
            log.beat()

    with log.stage("shp: load", 4) as advance:
        advance(4)
    with log.stage("shp: records", 4) as advance:
        advance(1)
        wait(20)
        advance(1)
        with log.stage("generate", 256) as inner:
            wait(30)
            inner(64)
            wait(30)
            inner(192)
            wait(1)
        with log.stage("score", 256) as inner:
            wait(9)
            inner(256)
        advance(1)
        wait(5)
        advance(1)
    assert lines == [
        "shp: records: 1 of 4, 1 s",
        "shp: records: 2 of 4, 20 s; 2 left, about 40 s",
        "generate: 0 of 256, 10 s",
        "shp: records: 2 of 4, 60 s; 2 left, about 20 s | generate: 64 of 256, 40 s; 192 left, about 80 s",
        "generate: 256 of 256, 61 s",
        "shp: records: 4 of 4, 95 s",
    ]


def test_a_stage_that_may_end_early_has_no_estimate() -> None:
    lines: list[str] = []
    clock = Clock()
    log = StageLog(lines.append, clock)
    with log.stage(f"value function{AT_MOST}", 1000) as advance:
        for _ in range(50):
            clock.now += 1
            advance(1)
    assert lines == [
        "value function (at most): 1 of 1000, 1 s; 999 left",
        "value function (at most): 31 of 1000, 31 s; 969 left",
        "value function (at most): 50 of 1000, 50 s",
    ]


def test_a_thousand_short_steps_are_no_flood() -> None:
    lines: list[str] = []
    clock = Clock()
    log = StageLog(lines.append, clock)
    with log.stage("judge", 1000) as advance:
        for _ in range(1000):
            clock.now += 0.125
            advance(1)
    assert lines == [
        "judge: 8 of 1000, 1 s; 992 left, about 2 min",
        "judge: 248 of 1000, 31 s; 752 left, about 94 s",
        "judge: 488 of 1000, 61 s; 512 left, about 64 s",
        "judge: 728 of 1000, 91 s; 272 left, about 34 s",
        "judge: 968 of 1000, 2 min; 32 left, about 4 s",
        "judge: 1000 of 1000, 2 min",
    ]


def test_a_stage_that_fails_has_no_last_line() -> None:
    lines: list[str] = []
    clock = Clock()
    log = StageLog(lines.append, clock)

    def fail() -> None:
        with log.stage("fit", 2):
            clock.now += 2
            log.beat()
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert lines == ["fit: 0 of 2, 2 s"]


def test_a_log_speaks_while_the_work_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "LASTING", 0.01)
    console = Console(file=io.StringIO())
    assert isinstance(console.file, io.StringIO)
    with stages.shown(console) as progress, progress("load", 1):
        for _ in range(500):
            if console.file.getvalue():
                break
            time.sleep(0.01)
    assert console.file.getvalue().splitlines() == ["load: 0 of 1, 0 s", "load: 0 of 1, 0 s"]


def test_a_terminal_has_bars_and_no_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with stages.shown(console) as progress, progress("a\x1b]0;b", 2) as advance:
        advance(1)
    assert isinstance(console.file, io.StringIO)
    assert r"a\x1b]0;b" in console.file.getvalue()


def test_durations_are_told_in_their_unit() -> None:
    assert [duration(s) for s in (0.2, 119, 120, 7199, 9000)] == ["0 s", "119 s", "2 min", "120 min", "2.5 h"]
