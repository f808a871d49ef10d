"""The machine a result was made on: device, threads, versions, memory."""

import os
import platform
import resource
import sys
from importlib.metadata import version
from typing import Any

import torch

from steerbench.errors import SteerbenchError, suggest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OUT_OF_MEMORY = "the GPU is out of memory; lower --batch-size or --max-new-tokens, or take smaller models."
TINY, SMALL = 1_000_000, 30_000_000
"""Parameters below which one thread, and two threads, beat more: they would mostly wait for each other."""


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


def use_threads(n_parameters: int, device: torch.device) -> int:
    """Set and return the number of CPU threads that suits a model of that size on that device."""
    if device.type == "cpu" and n_parameters < SMALL and not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(1 if n_parameters < TINY else min(2, os.cpu_count() or 1))
    return torch.get_num_threads()


def device_label(device: torch.device) -> str:
    """Return the name of the hardware, with the threads in use where it is a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    n = torch.get_num_threads()
    return f"{_cpu_model()}, {n} thread{'s' if n > 1 else ''}"


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MB: of the device since the last reset, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def environment(device: torch.device) -> dict[str, Any]:
    """Return the machine and the versions: recorded, and no matter when results are compared."""
    packages = ("torch", "transformers", "datasets", "evaluate", "scikit-learn", "pandas")
    return {
        "device": device_label(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in packages},
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - no path of the user's
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
