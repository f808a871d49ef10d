"""A run killed at any moment leaves whole records alone, and the same command finishes it without repeating them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import Result

from steerbench import Decoding, Options, Protocol, Record, Store, harness, run
from steerbench.latency import latency

METHODS = "static_prompt,caa"

KILLED = """
import os, signal, sys
from functools import partial
from pathlib import Path
from steerbench import Decoding, Options, Protocol, harness, run
from steerbench.latency import latency

world, out, methods = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
protocol = Protocol(
    task="hh_rlhf", model=str(world / "lm"), reward_model=str(world / "reward"), encoder=str(world / "encoder"),
    data=world / "hh_rlhf.jsonl", n_examples=3, n_train=4, decoding=Decoding(max_new_tokens=3),
)
harness.latency = partial(latency, new_tokens=2, rounds=1)

def run_and_die(moment, folder):
    '''Kill this process at the n-th step that it takes in the file system below the folder.'''
    steps = iter(range(moment))
    def step(event, arguments):
        if arguments and isinstance(arguments[0], (str, Path)) and str(arguments[0]).startswith(str(folder)):
            if next(steps, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(step)
    run(protocol, methods, Options(out=folder))
    os._exit(0)

moment, status = 0, None
while status != 0:
    child = os.fork()
    if child == 0:
        run_and_die(moment, out / str(moment))
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    moment += 1
print(moment)
"""


@pytest.fixture
def protocol(protocol: Protocol) -> Protocol:
    return replace(protocol, n_examples=3, n_train=4, decoding=Decoding(max_new_tokens=3))


def same_scores(one: list[Record], other: list[Record]) -> None:
    """Check that two runs have the same records with the same scores of every example."""
    assert [r.identity for r in one] == [r.identity for r in other]
    for a, b in zip(one, other, strict=True):
        pd.testing.assert_frame_equal(a.examples, b.examples)
        assert (a.metrics, a.steering) == (b.metrics, b.steering)


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*/*")}


def test_killed_at_every_step_in_the_file_system(
    protocol: Protocol, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", KILLED, str(world), str(tmp_path), METHODS]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == 0, killed.stderr
    count = int(killed.stdout)
    monkeypatch.setattr(harness, "latency", lambda *args, **kwargs: latency(*args, **kwargs, new_tokens=2, rounds=1))
    whole = Store(tmp_path / str(count - 1)).records()  # the last one was not killed
    assert [r.method for r in whole] == ["caa", "static_prompt", "unsteered"]

    left = {n: Store(tmp_path / str(n)).records() for n in range(1, count - 1)}
    assert {len(records) for records in left.values()} == {0, 1, 2, 3}
    for n, records in left.items():
        folder = tmp_path / str(n)
        assert all(len(r.examples) == 3 for r in records)
        before = times(folder)
        outcome = run(protocol, METHODS, Options(out=folder))
        assert outcome.found == len(records)
        assert before.items() <= times(folder).items(), "a finished record was written again"
        same_scores(Store(folder).records(), whole)


def start(args: list[str], folder: Path) -> "subprocess.Popen[str]":
    """Start the command line in a process of its own and wait for the first record."""
    command = [sys.executable, "-c", "from steerbench.cli import main; main()", "run", *args, "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not times(folder):
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_the_same_command_goes_on_where_it_was_ended(
    run_args: list[str], cli: Callable[..., Result], tmp_path: Path, sign: signal.Signals, code: int
) -> None:
    args = [*run_args, "--methods", f"{METHODS},random_direction"]
    with start(args, tmp_path / "ended") as process:
        os.kill(process.pid, sign)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    if sign == signal.SIGINT:
        assert errors == "interrupted. Finished records are kept; the same command goes on from there.\n"
    before = times(tmp_path / "ended")
    n_left = len(Store(tmp_path / "ended").records())
    assert 1 <= n_left < 4
    ended = cli("run", *args, "--out", tmp_path / "ended")
    assert ended.exit_code == 0
    assert f"4 records in {tmp_path / 'ended'}, {n_left} of them from before" in ended.stdout
    assert before.items() <= times(tmp_path / "ended").items()
    assert cli("run", *args, "--out", tmp_path / "whole").exit_code == 0
    same_scores(Store(tmp_path / "ended").records(), Store(tmp_path / "whole").records())
