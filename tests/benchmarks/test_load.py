"""What reading, ranking and reporting very many records costs, in seconds of CPU and MB at most: `make bench`.

5,000 records are 250 methods, with the unsteered model, on 2 tasks with 10 seeds and 64 prompts. Each command runs in a
process of its own; `cpu_s` and `peak_mb` are in `extra_info`, and printed. Needs Linux, which says how much was held.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_study import Study, write

MANY_METHODS = Study(240)
MANY_RECORDS = Study(250, tasks=2, seeds=10)
FEW = Study(8, seeds=2, prompts=8)
"""Where nothing is timed."""
_COMMAND = """
import os, sys
from pathlib import Path
from steerbench.cli import app
try:
    app(sys.argv[1:])
finally:  # what `getrusage` says of memory is that of whoever started the process, if it is more
    (peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    print(f"used {sum(os.times()[:2]):.1f} {int(peak) / 1024:.0f}")
"""


def used(*arguments: str) -> tuple[float, float]:
    """Run a command, and return its seconds of CPU and its peak memory in MB."""
    done = subprocess.run([sys.executable, "-c", _COMMAND, *arguments], capture_output=True, text=True, check=True)
    _, seconds, memory = done.stdout.splitlines()[-1].split()
    return float(seconds), float(memory)


@pytest.mark.parametrize(
    ("study", "command", "seconds"),
    [
        (MANY_METHODS, "leaderboard", 10),
        (MANY_RECORDS, "leaderboard", 30),
        (MANY_RECORDS, "report", 60),
    ],
    ids=["240-methods-leaderboard", "5000-records-leaderboard", "5000-records-report"],
)
def test_load(benchmark: Any, tmp_path: Path, study: Study, command: str, seconds: float) -> None:
    """`seconds` is what is asked for; it stands beside what was used, and does not fail the benchmark."""
    made = study if benchmark.enabled else FEW
    write(made, tmp_path / "records")
    written = (
        ["--csv", str(tmp_path / "table.csv")] if command == "leaderboard" else ["--out", str(tmp_path / "p.html")]
    )
    cpu, peak = benchmark.pedantic(used, (command, str(tmp_path / "records"), *written), rounds=1)
    benchmark.extra_info.update(records=made.n_records, cpu_s=cpu, peak_mb=peak, asked_s=seconds)
    print(f"{command} of {made.n_records} records: {cpu:.1f} s of CPU, {peak:.0f} MB")
    assert Path(written[1]).stat().st_size > 0
