"""Ctrl-C and SIGTERM: one sentence that says what is kept and how to go on, no traceback, and an exit status."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from steerbench.cli import stages
from steerbench.cli.interruption import Terminated, as_it_came, farewell, handled

Cli = Callable[..., Result]

KEPT = "Finished records are kept; the same command goes on from there."
ANEW = "Nothing is kept; the same command begins anew."
SIGNALS = {"SIGINT": (KeyboardInterrupt, 130, "interrupted"), "SIGTERM": (Terminated, 143, "ended by SIGTERM")}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_is_an_exception_only_while_it_is_handled(name: str) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with handled(), pytest.raises(SIGNALS[name][0]):
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("name", SIGNALS)
def test_what_a_library_makes_of_a_signal_is_told_as_the_signal(name: str) -> None:
    plain, kind = KeyboardInterrupt(), SIGNALS[name][0]
    with handled():
        with pytest.raises(kind):
            os.kill(os.getpid(), signal.Signals[name])
        assert type(as_it_came(plain)) is kind
    assert as_it_came(plain) is plain


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handled():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_during_an_import_ends_at_once(name: str, tmp_path: Path) -> None:
    """Where it comes as an exception, modules such as this one lose it."""
    (tmp_path / "slow_import.py").write_text(
        f"import os, signal\ntry:\n    os.kill(os.getpid(), signal.{name})\nexcept BaseException:\n    print('lost')\n"
    )
    code = "from steerbench.cli.interruption import handled\nwith handled():\n    import slow_import"
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-c", code, "run", "--methods", "caa"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths})
    _, status, what = SIGNALS[name]
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"{what}. {KEPT}\n")


COMMANDS = {
    "run": ([], KEPT),
    "latency": ([], ANEW),
    "check": (["caa"], ANEW),
    "testbed": (["build", "--out", "new"], ANEW),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", SIGNALS)
def test_every_long_command_says_what_is_kept(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    interruption, status, what = SIGNALS[name]

    @contextmanager
    def interrupted(*_: Any) -> Iterator[Any]:
        raise interruption
        yield

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "shown", interrupted)
    args, kept = COMMANDS[command]
    done = cli(command, *args)
    assert (done.exit_code, done.stdout, done.stderr) == (status, "", f"{what}. {kept}\n")


def test_the_replies_of_a_judge_are_kept() -> None:
    assert farewell("judge") == "interrupted. Replies so far are kept; the same command goes on from there."
    assert farewell("list", Terminated()) == "ended by SIGTERM."
