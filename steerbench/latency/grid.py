"""What methods cost at every batch size and prompt length: timed in turns with the unsteered model, in one process.

Each cell of the grid is warmed up with one round, and then timed in rounds: in each, every steering runs once, in an
order that is drawn anew and reversed in the round after it. A ratio is one to the unsteered model in the same round, so
that a drifting clock cancels. That model is there a second time: what its ratio is off 1 is the noise.
"""

import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from steerbench.data.dialogue import Dialogue
from steerbench.engine.floor import decode_floor
from steerbench.engine.prompting import prompted
from steerbench.engine.timing import Timing, figures, timed
from steerbench.errors import SteerbenchError
from steerbench.latency.clocks import conditions
from steerbench.latency.prompts import fixed_prompts
from steerbench.models.failure import reason
from steerbench.models.language_model import LanguageModel
from steerbench.models.reward import Reward
from steerbench.plugins.spec import UNSTEERED
from steerbench.progress import Progress, silent
from steerbench.seeds import seed_for
from steerbench.steering.steering import Steering

AGAIN = f"{UNSTEERED} (again)"
"""The unsteered model beside itself."""
_NO_MEMORY = "out of memory"
"""In the cell of a table."""
N_RESAMPLES = 10_000
FEWEST = 6
"""Rounds below which a ratio has no interval. All of `n` values lie on one side of the true median in 2 / 2**n of all
cases: for 5 of them in more than 5 %, so that even from the lowest to the highest is no 95 % interval.
"""
RATIOS: dict[str, Callable[[Timing], float]] = {
    "prefill": lambda timing: timing.first,
    "decode": lambda timing: timing.decode,
    "total": lambda timing: timing.all,
}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is timed, and how often."""

    batch_sizes: tuple[int, ...] = (1, 8, 32)
    prompt_tokens: tuple[int, ...] = (32, 128, 256)
    """Of the unsteered model's prompts; what a steering adds to them comes on top."""
    new_tokens: int = 64
    rounds: int = 10
    """Without the one that warms up."""
    seed: int = 0
    """Of the prompts, and of the order within rounds."""

    def __post_init__(self) -> None:
        sizes = (*self.batch_sizes, *self.prompt_tokens, self.rounds)
        if min(sizes) < 1 or self.new_tokens < 2 or not self.batch_sizes or not self.prompt_tokens:
            raise SteerbenchError(
                "batch sizes, prompt tokens and rounds must be 1 or more, and new tokens 2 or more: the first one is "
                "that of the prefill."
            )

    def check_room(self, lm: LanguageModel) -> None:
        """Raise SteerbenchError if some prompt and its new tokens are longer than the context of a model."""
        longest = max(self.prompt_tokens)
        if longest + self.new_tokens > lm.context_length:
            raise SteerbenchError(
                f"{longest} prompt tokens and {self.new_tokens} new ones do not fit the context of {lm.context_length} "
                f"of {lm.name}; lower --prompt-tokens or --new-tokens."
            )


@dataclass
class _Arm:
    """One steering in one cell: what was timed, or the reason why it was not."""

    name: str
    steering: Steering
    prompt_tokens: int | None = None
    timings: list[Timing] = field(default_factory=list)
    floor: float | None = None
    """The least that decoding could take beside the unsteered model."""
    problem: str | None = None

    def attempt(self, work: Callable[[], None], device: torch.device) -> None:
        """Do something unless it failed before; note what goes wrong, and give the memory back."""
        if self.problem is not None:
            return
        try:
            work()
        except Exception as error:  # of a plugin, or of the memory: the other steerings go on
            self.problem = reason(error, _NO_MEMORY)
        if self.problem is not None:  # the error is gone, and with it what its frames held
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def prepare(self, lm: LanguageModel, dialogues: Sequence[Dialogue], reward: Reward, new_tokens: int) -> None:
        """Find out how long the prompts are, and the floor. Raises SteerbenchError if they do not fit the context."""
        self.prompt_tokens = max(len(lm.tokens(d).prompt) for d in prompted(lm, self.steering, dialogues))
        if self.prompt_tokens + new_tokens > lm.context_length:
            raise SteerbenchError(
                f"{self.prompt_tokens} prompt tokens and {new_tokens} new ones do not fit the context of "
                f"{lm.context_length}"
            )
        self.floor = decode_floor(lm, self.steering, dialogues, reward, new_tokens)

    def run(self, lm: LanguageModel, dialogues: Sequence[Dialogue], reward: Reward, new_tokens: int) -> None:
        """Time one round."""
        self.timings.append(timed(lm, dialogues, self.steering, reward, new_tokens))

    def summary(self, base: "_Arm", new_tokens: int, rows: int) -> dict[str, Any]:
        """Return the figures, the ratios to the unsteered model, and the seconds of each round."""
        known = {"method": self.name, "prompt_tokens": self.prompt_tokens}
        problem = self.problem or (base.problem and f"the unsteered model: {base.problem}")
        if problem:
            return {**known, "problem": problem}
        kept = self.timings[1:]
        pairs = list(zip(kept, base.timings[1:], strict=True))
        ratios = {name: ratio([(of(s), of(b)) for s, b in pairs]) for name, of in RATIOS.items()}
        return {
            **known,
            **figures(kept, new_tokens, rows),
            "ratios": {} if self is base else ratios,
            "decode_floor": self.floor,
            "seconds": {"first": [t.first for t in kept], "all": [t.all for t in kept]},
        }


Prompts = Mapping[int, Sequence[Dialogue]]
"""Number of tokens -> dialogues whose prompts have as many, enough for the largest batch."""


def grid_prompts(lm: LanguageModel, grid: Grid) -> Prompts:
    """Return the prompts of a grid. Raises SteerbenchError if some length cannot be written."""
    most = max(grid.batch_sizes)
    return {n: fixed_prompts(lm, n, most, grid.seed) for n in grid.prompt_tokens}


def time_grid(
    lm: LanguageModel,
    steerings: Mapping[str, Steering],
    reward: Reward,
    grid: Grid,
    prompts: Prompts,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Time steerings and, twice, the unsteered model in each cell of a grid; return the cells, plain JSON values.

    What fails in a cell, for want of memory or of room in the context, has its reason there, and the rest goes on.
    """
    arms = {UNSTEERED: Steering(), AGAIN: Steering(), **steerings}
    sizes = [(rows, n) for n in grid.prompt_tokens for rows in grid.batch_sizes]
    with progress("cells", len(sizes)) as advance:
        cells = []
        for rows, n in sizes:
            cell = [_Arm(name, steering) for name, steering in arms.items()]
            _time_cell(lm, cell, prompts[n][:rows], reward, grid, progress)
            cells.append(
                {
                    "batch_size": rows,
                    "prompt_tokens": n,
                    "conditions": conditions(lm.device),
                    "arms": [arm.summary(cell[0], grid.new_tokens, rows) for arm in cell],
                }
            )
            advance(1)
    return cells


def _time_cell(
    lm: LanguageModel,
    arms: Sequence[_Arm],
    dialogues: Sequence[Dialogue],
    reward: Reward,
    grid: Grid,
    progress: Progress,
) -> None:
    """Time all arms on one batch. The first is the unsteered model, without which nothing can be compared."""
    for arm in arms:
        arm.attempt(partial(arm.prepare, lm, dialogues, reward, grid.new_tokens), lm.device)
    label = f"batch {len(dialogues)}, {arms[0].prompt_tokens} prompt tokens"
    with progress(label, grid.rounds + 1) as advance:
        for order in orders(len(arms), grid.rounds + 1, seed_for(grid.seed, label)):
            for arm in (arms[i] for i in order):
                if arms[0].problem is None:
                    arm.attempt(partial(arm.run, lm, dialogues, reward, grid.new_tokens), lm.device)
            advance(1)


def orders(count: int, rounds: int, seed: int) -> Iterator[list[int]]:
    """Yield the order of `count` arms in each round: one at random, then its reverse, then another one.

    No two rounds in a row have the same order, and in each pair of rounds each arm comes as often before as behind any
    other, so that a steady drift cancels.
    """
    generator, order = random.Random(seed), list(range(count))
    for i in range(rounds):
        order = order[::-1] if i % 2 else _other(order, generator)
        yield order


def _other(order: list[int], generator: random.Random) -> list[int]:
    """Return another random order."""
    drawn = order
    while drawn == order:
        drawn = generator.sample(order, len(order))
    return drawn


def ratio(pairs: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """Return the median of the ratios of pairs, and its 95 % interval over the pairs: percentiles of a bootstrap.

    The ends are None for fewer than `FEWEST` pairs.
    """
    ratios = [steered / base for steered, base in pairs]
    low, high = _interval(ratios) if len(ratios) >= FEWEST else (None, None)
    return {"median": median(ratios), "low": low, "high": high}


def _interval(values: Sequence[float]) -> tuple[float, float]:
    from scipy.stats import bootstrap  # takes half a second to import

    # percentiles: the correction of BCa needs a statistic that is smooth, and a median is not
    found = bootstrap(
        (np.array(values),),
        np.median,
        n_resamples=N_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)
