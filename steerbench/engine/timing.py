"""What a steering costs in time and memory: timed in turns with the unsteered model, and reported as a ratio to it."""

import time
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from steerbench.data.dialogue import Dialogue
from steerbench.engine.backends.generation_engine import GenerationEngine
from steerbench.engine.floor import decode_floor
from steerbench.engine.generate import generate_fixed
from steerbench.models.language_model import LanguageModel
from steerbench.models.machine import device_label, peak_memory_mb, reset_peak_memory
from steerbench.progress import Progress, silent
from steerbench.steering.steering import Steering

if TYPE_CHECKING:
    from steerbench.models.reward import Reward


class Timing(NamedTuple):
    """One round of one steering: seconds to the first token, seconds for all, peak memory in MB."""

    first: float
    all: float
    peak: float

    @property
    def decode(self) -> float:
        """Seconds for all tokens but the first."""
        return max(self.all - self.first, 1e-9)


def latency(  # noqa: PLR0913 - the settings of one call, each by name
    lm: LanguageModel,
    dialogue: Dialogue,
    steering: Steering,
    reward: "Reward",
    *,
    new_tokens: int = 32,
    rounds: int = 5,
    engine: GenerationEngine | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Time a steering against the unsteered model on one prompt at batch 1, after one round of warm-up.

    In each round both run, in changing order. Every run makes `new_tokens` tokens, whatever it would like to end with.
    Times are medians over rounds; ratios are medians of the ratios within rounds, so that a drifting clock cancels.
    Beside them stands the least that decoding could take.
    """
    timings: tuple[list[Timing], list[Timing]] = ([], [])
    arms = (Steering(), steering)
    with progress("latency", rounds + 1) as advance:
        for i in range(rounds + 1):
            for arm in (0, 1) if i % 2 else (1, 0):
                timings[arm].append(timed(lm, [dialogue], arms[arm], reward, new_tokens, engine))
            advance(1)
    base, steered = (rows[1:] for rows in timings)
    return {
        **figures(steered, new_tokens),
        "unsteered": figures(base, new_tokens),
        "prefill_ratio": median(s.first / b.first for s, b in zip(steered, base, strict=True)),
        "decode_ratio": median(s.decode / b.decode for s, b in zip(steered, base, strict=True)),
        "decode_floor": decode_floor(lm, steering, [dialogue], reward, new_tokens),
        "rounds": rounds,
        "new_tokens": new_tokens,
        "prompt_tokens": len(lm.tokens(dialogue).prompt),
        "batch_size": 1,
        "device": device_label(lm.device),
        "memory": memory_of(lm.device),
    }


def timed(
    lm: LanguageModel,
    dialogues: Sequence[Dialogue],
    steering: Steering,
    reward: "Reward",
    new: int,
    engine: GenerationEngine | None = None,
) -> Timing:
    """Time a batch twice: up to its first tokens, and up to `new` tokens of each row, 2 or more."""
    if engine is not None:
        generate_fixed(lm, dialogues, steering, 1, reward, engine)  # edits are handed over once, and not at each call
    reset_peak_memory(lm.device)
    first = _seconds(lm, dialogues, steering, reward, 1, engine)
    whole = _seconds(lm, dialogues, steering, reward, new, engine)
    return Timing(first, whole, engine.peak_memory_mb() if engine else peak_memory_mb(lm.device))


def figures(timings: Sequence[Timing], new: int, rows: int = 1) -> dict[str, float]:
    """Return the medians over rounds, with `rows` rows of `new` tokens in each, and the highest peak."""
    return {
        "prefill_ms": 1e3 * median(t.first for t in timings),
        "decode_ms_per_token": 1e3 * median(t.decode for t in timings) / (new - 1),
        "tokens_per_s": rows * new / median(t.all for t in timings),
        "peak_memory_mb": max(t.peak for t in timings),
    }


def memory_of(device: torch.device) -> str:
    """Return what peak memory is measured of: `device`, its tensors; or `process`, all of it, on a CPU."""
    return "device" if device.type == "cuda" else "process"


def _seconds(
    lm: LanguageModel,
    dialogues: Sequence[Dialogue],
    steering: Steering,
    reward: "Reward",
    new: int,
    engine: GenerationEngine | None,
) -> float:
    _wait(lm.device)
    start = time.perf_counter()
    generate_fixed(lm, dialogues, steering, new, reward, engine)
    _wait(lm.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """Wait for the GPU: kernels run on after the call that started them returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
