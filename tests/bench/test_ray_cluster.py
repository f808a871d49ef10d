"""A run on a Ray cluster: the records of a serial run, whatever is killed meanwhile. Needs the extra `ray`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pandas as pd
import pytest
from carried_records import contents
from given_options import last_of_each

from steerbench import Options, Protocol, Store
from steerbench.bench.ray_cluster import RETRIES, RayCluster
from steerbench.errors import SteerbenchError

pytest.importorskip("ray", reason="the extra steerbench[ray] is not installed")
pytestmark = pytest.mark.slow

METHODS = "static_prompt,caa,re_control"
SIZES = ["--n-examples", "3", "--n-train", "4", "--max-new-tokens", "3", "--seeds", "0,1", "--threads", "1"]
COMMAND = [sys.executable, "-m", "steerbench", "run"]
N_KILLS = 5
ENVIRONMENT = {**os.environ, "RAY_worker_niceness": "0"}


@pytest.fixture(scope="module")
def args(run_args: list[str]) -> list[str]:
    return last_of_each([*run_args, *SIZES, "--methods", METHODS])


@pytest.fixture(scope="module")
def serial(args: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of a run in one process."""
    out = tmp_path_factory.mktemp("serial")
    subprocess.run([*COMMAND, *args, "--out", str(out)], check=True, capture_output=True)
    assert len(contents(out)) == 8
    return out


def started(args: list[str], out: Path, *more: str) -> "subprocess.Popen[str]":
    command = [*COMMAND, *args, "--out", str(out), "--ray", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def finished(process: "subprocess.Popen[str]") -> tuple[str, str]:
    done, errors = process.communicate()
    assert process.returncode == 0, errors
    return done, errors


def children(ancestor: int) -> Iterator[tuple[int, str]]:
    """Yield the processes below one, each with its command line, which Ray's workers change as they work."""
    parents, lines = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(path.name)] = (path / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except (OSError, IndexError):
            continue
    for pid, line in lines.items():
        above = pid
        while above in parents and above != ancestor:
            above = parents[above]
        if above == ancestor and pid != ancestor:
            yield pid, line


def workers(driver: int) -> list[tuple[int, str]]:
    return [(pid, line) for pid, line in children(driver) if line.startswith("ray::Worker")]


def records(out: Path) -> int:
    return len(list(out.glob("[!.]*/record.json")))


def test_records_are_those_of_a_serial_run(args: list[str], serial: Path, tmp_path: Path) -> None:
    done, errors = finished(started(args, tmp_path))
    assert contents(tmp_path) == contents(serial)
    assert f"8 records in {tmp_path}, 0 of them from before" in done
    assert "hh_rlhf: records, " in errors
    assert "ray" not in errors.lower().replace("--ray", "")
    one, other = (pd.read_csv(out / "leaderboard.csv")["reward"] for out in (tmp_path, serial))
    assert list(one) == list(other)
    assert {path.name.partition("-")[0] for path in (tmp_path / "shared").iterdir()} == {"rollouts", "states"}
    again, _ = finished(started(args, tmp_path))
    assert "8 of them from before" in again


def test_workers_killed_at_random_moments_change_nothing(args: list[str], serial: Path, tmp_path: Path) -> None:
    """The first is killed as it measures, the others whatever they are at, which is mostly loading."""
    draw, kills, runs = Random(0), list[str](), 0
    seconds = duration(started(args, tmp_path / "whole"))
    while len(kills) < N_KILLS:
        runs += 1
        out = tmp_path / str(runs)
        process = started(args, out)
        while process.poll() is None and len(kills) < N_KILLS:
            time.sleep(draw.uniform(0, seconds / 2) if kills and workers(process.pid) else 0.05)
            if found := [one for one in workers(process.pid) if kills or "measure" in one[1]]:
                pid, line = draw.choice(found)
                os.kill(pid, signal.SIGKILL)
                kills.append(line)
        finished(process)
        assert contents(out) == contents(serial)
    assert runs < N_KILLS <= RETRIES, "most runs were over before a worker was killed"
    assert any("measure" in line for line in kills), "none was killed as it measured"


def duration(process: "subprocess.Popen[str]") -> float:
    """Return for how many seconds a run has workers."""
    while process.poll() is None and not workers(process.pid):
        time.sleep(0.1)
    start = time.monotonic()
    finished(process)
    return time.monotonic() - start


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_that_is_ended_goes_on(
    args: list[str], serial: Path, tmp_path: Path, sign: signal.Signals, code: int
) -> None:
    process = started(args, tmp_path)
    while process.poll() is None and not records(tmp_path):
        time.sleep(0.05)
    ours = [pid for pid, _ in children(process.pid)]
    assert ours
    process.send_signal(sign)
    _, errors = process.communicate()
    assert process.returncode == code
    if code > 0:
        assert "Finished records are kept; the same command goes on from there." in errors.splitlines()[-1]
        assert "Traceback" not in errors
    left = len(Store(tmp_path).records())
    assert 1 <= left < 8
    end = time.monotonic() + 90  # those that only watch look for the others now and then
    while any(Path(f"/proc/{pid}").exists() for pid in ours) and time.monotonic() < end:
        time.sleep(0.2)
    assert not [pid for pid in ours if Path(f"/proc/{pid}").exists()], "processes stay behind"
    done, _ = finished(started(args, tmp_path))
    assert f"{left} of them from before" in done
    assert contents(tmp_path) == contents(serial)


def test_a_mistake_is_told_as_without_ray(args: list[str], tmp_path: Path) -> None:
    process = started([*args, "--held-out-reward", args[args.index("--reward-model") + 1]], tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("error: the held-out reward, reward, is the guiding reward itself")
    assert "Traceback" not in errors


def test_no_room_is_told(protocol: Protocol, tmp_path: Path) -> None:
    told = pytest.raises(SteerbenchError, match="no machine of the cluster has room")
    options = Options(out=tmp_path, threads=1000)
    with RayCluster(n_workers=1) as cluster, told, cluster.crew(protocol, options, []):
        pass
