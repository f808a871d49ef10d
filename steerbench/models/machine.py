"""The machine a result was made on: device, threads, versions, memory."""

import math
import os
import platform
import resource
import sys
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from steerbench.errors import SteerbenchError, suggest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OUT_OF_MEMORY = "the GPU is out of memory; lower --batch-size or --max-new-tokens, or take smaller models."
TINY, SMALL = 1_000_000, 30_000_000
"""Parameters below which one thread, and two threads, beat more: they would mostly wait for each other."""
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_SLICE, _SLICES = 0.005, 4
"""Seconds for which numbers of threads are tried in turns, and how often: load comes and goes."""


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is a GPU if there is one. Raises SteerbenchError if it is missing."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        known = ["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise SteerbenchError(f"device {name!r} is not there. Here: {', '.join(known)}.") from error
    return device


def dtype_of(name: str) -> torch.dtype | None:
    """Return the data type of that name; None for `auto`. Raises SteerbenchError for another name."""
    if name == "auto":
        return None
    if name not in DTYPES:
        raise SteerbenchError(suggest("dtype", name, ["auto", *DTYPES]))
    return DTYPES[name]


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device multiplies in it, else float32: a CPU without it is several times slower."""
    native = device.type == "cuda" or (device.type == "cpu" and not _BF16_FLAGS.isdisjoint(_cpu_flags()))
    return torch.bfloat16 if native else torch.float32


def use_threads(n_parameters: int, device: torch.device) -> int:
    """Set and return the number of CPU threads that suits a model of that size on that device, as busy as it is.

    Sums of another number of threads are rounded otherwise, in the last bits: so one process measures once for a size.
    """
    if device.type == "cpu" and not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(_fastest(_most_threads(n_parameters), _width(n_parameters)))
    return torch.get_num_threads()


def fix_threads(n: int) -> None:
    """Set the number of CPU threads. Raises SteerbenchError for none."""
    if n < 1:
        raise SteerbenchError(f"{n} threads cannot compute anything; give 1 or more.")
    torch.set_num_threads(n)


def threads_label() -> str:
    """Return how many CPU threads compute."""
    n = torch.get_num_threads()
    return f"{n} thread{'s' if n > 1 else ''}"


def _most_threads(n_parameters: int) -> int:
    if n_parameters < TINY:
        return 1
    cores = torch.get_num_threads() if n_parameters >= SMALL else os.cpu_count() or 1
    return cores if n_parameters >= SMALL else min(2, cores)


def _width(n_parameters: int) -> int:
    """Return about the width of a model of 30 blocks with that many parameters, so wide that it is soon multiplied."""
    return min(1024, math.isqrt(n_parameters // (12 * 30)))


@cache
def _fastest(n: int, width: int) -> int:
    """Return `n`, or 1 where one thread is faster now: on a busy machine threads wait for those that wait for a core.

    It takes some hundredths of a second on an idle machine.
    """
    if n == 1:
        return 1
    alone, together = (_passes_in(_SLICE, threads, width) for threads in (1, n))
    for _ in range(_SLICES - 1):
        if together < alone / 2:
            break
        alone, together = alone + _passes_in(_SLICE, 1, width), together + _passes_in(_SLICE, n, width)
    return n if together >= alone else 1


def _passes_in(seconds: float, threads: int, width: int) -> float:
    """Return how many passes through a block of that width a number of threads makes in that time."""
    torch.set_num_threads(threads)
    h, up, down = torch.ones(32, width), torch.zeros(width, 4 * width), torch.zeros(4 * width, width)
    _ = h @ up @ down  # the first time, threads are started
    n, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds or not n:
        _ = h @ up @ down
        n += 1
    return n * seconds / spent


def device_label(device: torch.device) -> str:
    """Return the name of the hardware, with the threads in use where it is a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = _cpu_info("model name")
    model = names[0] if names else platform.processor() or platform.machine()
    return f"{model}, {threads_label()}"


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MB: of the device since the last reset, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def reset_peak_memory(device: torch.device) -> None:
    """Forget earlier peaks. Only Linux can for a process; elsewhere the peak is that since the process began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def environment(device: torch.device) -> dict[str, Any]:
    """Return the machine and the versions: recorded, and no matter when results are compared."""
    return {
        "device": device_label(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **_versions(),
    }


@cache
def _versions() -> dict[str, str]:
    """Return the versions of packages; finding them takes as long as a short fit."""
    return {name: version(name) for name in ("torch", "transformers", "datasets", "evaluate", "scikit-learn", "pandas")}


def _cpu_flags() -> set[str]:
    """Return what a CPU says that it can do, under the name that its architecture has for it."""
    return {word for line in (*_cpu_info("flags")[:1], *_cpu_info("Features")[:1]) for word in line.split()}


def _cpu_info(name: str) -> list[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - no path of the user's
            return [line.partition(":")[2].strip() for line in file if line.startswith(name)]
    except OSError:
        return []
