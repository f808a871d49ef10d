"""A run killed at any moment leaves whole records alone, and the same command finishes it without repeating them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import made_records
import pandas as pd
import pytest
from carried_records import contents
from given_options import last_of_each
from typer.testing import Result

from steerbench import Decoding, Options, Protocol, Record, Store, run
from steerbench.bench import run as harness
from steerbench.engine.timing import latency

METHODS = "static_prompt,caa"

KILLED = """
import os, signal, sys
from functools import partial
from pathlib import Path
from steerbench import Decoding, Options, Protocol, run
from steerbench.bench import run as harness
from steerbench.engine.timing import latency

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

WRITTEN = """
import os, signal, sys
from pathlib import Path
from made_records import make
from steerbench import Store

out, moment, status = Path(sys.argv[1]), 0, None
while status != 0:
    folder = out / str(moment)
    folder.mkdir()
    Store(folder).write(make("unsteered"))
    child = os.fork()
    if child == 0:
        steps = iter(range(moment))
        def step(event, arguments):
            if arguments and isinstance(arguments[0], (str, Path)) and str(arguments[0]).startswith(str(folder)):
                if next(steps, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(step)
        Store(folder).write(make("caa"))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    moment += 1
print(moment)
"""

TIMED = """
import importlib, json, os, random, signal, sys, time
from contextlib import suppress
from functools import partial
from pathlib import Path
from steerbench.bench import run as harness
from steerbench.cli import app
from steerbench.engine.timing import latency

out, n, args = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
harness.latency = partial(latency, new_tokens=2, rounds=1)
null = os.open(os.devnull, os.O_WRONLY)

def started(folder):
    '''Start the command in a process of its own, which has everything imported already.'''
    child = os.fork()
    if child == 0:
        os.dup2(null, 1)
        app(["run", *args, "--out", str(out / folder)], standalone_mode=False)
        if folder == "first":
            (out / "modules.json").write_text(json.dumps(sorted(sys.modules)))
        os._exit(0)
    return child

def finished(folder):
    '''Run to the end and return how many seconds it took.'''
    start = time.perf_counter()
    status = os.waitpid(started(folder), 0)[1]
    assert status == 0, status
    return time.perf_counter() - start

def killed(folder, moment):
    '''Kill a run after so many seconds; say whether it was still going on.'''
    child = started(folder)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL

finished("first")
for name in json.loads((out / "modules.json").read_text()):
    with suppress(ImportError):
        importlib.import_module(name)
timings = json.loads(next((out / "first").glob("*/record.json")).read_text())["latency"]
harness.latency = lambda *args, **kwargs: timings  # a third of the time, and nothing that could be compared
seconds = finished("whole")
draw = random.Random(0)
hits = 0
for k in range(n):
    hits += killed(f"once-{k}", (k + draw.random()) / n * seconds)
    finished(f"once-{k}")
for k in range(n):
    hits += killed("often", draw.random() * seconds / 2)
finished("often")
print(hits, seconds)
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


def test_a_record_that_was_being_written_is_whole_or_not_there(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(made_records.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", WRITTEN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    count = int(done.stdout)
    found = [[r.method for r in Store(tmp_path / str(moment)).records()] for moment in range(count)]
    assert {tuple(methods) for methods in found} == {("unsteered",), ("caa", "unsteered")}
    assert found[0] == ["unsteered"]
    for moment, methods in enumerate(found):
        store = Store(tmp_path / str(moment))
        if len(methods) == 1:
            store.write(made_records.make("caa"))
        same_scores(store.records(), [made_records.make("caa"), made_records.make("unsteered")])


@pytest.mark.slow
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


STARTED = """
from functools import partial
from steerbench.bench import run as harness
from steerbench.cli import main
from steerbench.engine.timing import latency
harness.latency = partial(latency, new_tokens=2, rounds=1)
main()
"""


def start(args: list[str], folder: Path) -> "subprocess.Popen[str]":
    """Start the command line in a process of its own and wait for the first record."""
    command = [sys.executable, "-c", STARTED, "run", *args, "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not times(folder):
        time.sleep(0.01)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sign", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 143)],
)
def test_the_same_command_goes_on_where_it_was_ended(
    run_args: list[str], run_cli: Callable[..., Result], tmp_path: Path, sign: signal.Signals, code: int
) -> None:
    methods = ["--methods", f"{METHODS},random_direction"]
    with start([*run_args, *methods], tmp_path / "ended") as process:
        os.kill(process.pid, sign)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    if code > 0:
        what = {130: "interrupted", 143: "ended by SIGTERM"}[code]
        *stages, last = errors.splitlines()
        assert last == f"{what}. Finished records are kept; the same command goes on from there."
        assert all(re.fullmatch(r".+: \d+ of \d+, .+", line) for line in stages)
    before = times(tmp_path / "ended")
    n_left = len(Store(tmp_path / "ended").records())
    assert 1 <= n_left < 4
    ended = run_cli(*methods, "--out", tmp_path / "ended")
    assert ended.exit_code == 0
    assert f"4 records in {tmp_path / 'ended'}, {n_left} of them from before" in ended.stdout
    assert before.items() <= times(tmp_path / "ended").items()
    assert run_cli(*methods, "--out", tmp_path / "whole").exit_code == 0
    same_scores(Store(tmp_path / "ended").records(), Store(tmp_path / "whole").records())


# Killed at any time

N_KILLS = 20
COLUMNS_NOT_COMPARED = ("prefill_", "decode_", "tokens_per_s", "peak_memory_mb", "fit_seconds")
"""What the leaderboard says about the clock; a column begins so."""


@pytest.fixture(scope="module")
def killed(run_args: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run that was not killed, `whole`, and with those that were killed and begun again."""
    out = tmp_path_factory.mktemp("killed")
    sizes = ["--n-examples", "3", "--n-train", "4", "--max-new-tokens", "3", "--tune", "2", "--seeds", "0,1"]
    given = last_of_each([*run_args, *sizes, "--methods", METHODS])
    command = [sys.executable, "-c", TIMED, str(out), str(N_KILLS), *given]
    done = subprocess.run([*command[:-1], f"{METHODS},random_direction"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > N_KILLS, "most runs were over before they were killed"
    return out


def leaderboard(folder: Path) -> pd.DataFrame:
    """Return the leaderboard that the run wrote, without times and memory."""
    table = pd.read_csv(folder / "leaderboard.csv")
    return table[[column for column in table if not column.startswith(COLUMNS_NOT_COMPARED)]]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"once-{k}" for k in range(N_KILLS)), "often"])
def test_a_run_that_was_killed_ends_as_one_that_was_not(killed: Path, name: str) -> None:
    whole = contents(killed / "whole")
    assert len(whole) == 8
    assert contents(killed / name) == whole
    pd.testing.assert_frame_equal(leaderboard(killed / name), leaderboard(killed / "whole"))
    others = {path.name for path in (killed / name).iterdir()} - whole.keys() - {"leaderboard.csv"}
    assert all(other.startswith(".partial-") for other in others)
