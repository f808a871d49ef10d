"""How fast the processor runs at the moment, and what else the machine does: what a timing depends on."""

import os
import subprocess
from pathlib import Path
from statistics import mean

import torch

_GPU = {"sm_mhz": "clocks.sm", "memory_mhz": "clocks.mem", "power_w": "power.draw", "celsius": "temperature.gpu"}


def conditions(device: torch.device) -> dict[str, float]:
    """Return the conditions of this moment, as far as they can be read.

    - `load_average`: jobs of the last minute that ran or waited for a processor
    - `cpu_mhz`: mean over the processors
    - `sm_mhz`, `memory_mhz`, `power_w`, `celsius`: of a GPU, as `nvidia-smi` tells them
    """
    return {**_jobs(), **_cpu(), **(_gpu(device) if device.type == "cuda" else {})}


def driver(device: torch.device) -> dict[str, str]:
    """Return the versions of CUDA and of the driver of a GPU; nothing for a CPU."""
    if device.type != "cuda":
        return {}
    return {"cuda": str(torch.version.cuda), "driver": ", ".join(_ask(device, ["driver_version"])) or "unknown"}


def _jobs() -> dict[str, float]:
    try:
        return {"load_average": os.getloadavg()[0]}
    except (OSError, AttributeError):  # Windows has none
        return {}


def _cpu() -> dict[str, float]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return {"cpu_mhz": mean(clocks)} if clocks else {}


def _gpu(device: torch.device) -> dict[str, float]:
    values = _ask(device, list(_GPU.values()))
    return {name: float(text) for name, text in zip(_GPU, values, strict=False) if _is_number(text)}


def _ask(device: torch.device, fields: list[str]) -> list[str]:
    """Ask `nvidia-smi` about a GPU; an empty list if it has no answer. It may number GPUs otherwise than CUDA does."""
    gpu = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = ["nvidia-smi", gpu, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [text.strip() for text in answer.strip().split(",")]


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()  # else `[N/A]`
