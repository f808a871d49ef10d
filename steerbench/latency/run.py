"""`steerbench latency`: fit methods on a model, trained or random, and time them over a grid."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import steerbench
from steerbench import registry, testbed
from steerbench.data import folder_of, load_data
from steerbench.errors import SteerbenchError
from steerbench.harness import plan
from steerbench.latency.clocks import driver
from steerbench.latency.grid import Grid, grid_prompts, reason, time_grid
from steerbench.latency.records import KIND, SCHEMA_VERSION
from steerbench.latency.shapes import RandomModel, random_model
from steerbench.latency.timing import memory_of
from steerbench.lm import LanguageModel
from steerbench.machine import device_label, dtype_of, environment, pick_device, use_threads
from steerbench.method import Method
from steerbench.progress import Progress, silent
from steerbench.protocol import Decoding, Protocol
from steerbench.reward import RewardModel
from steerbench.selection import fitting, prompt_limit
from steerbench.steerer import FitContext
from steerbench.steering import Steering

ROLLOUT_TOKENS = 32
"""Longest response that a method learns from here."""
_FIT_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that is timed, and what methods learn from: the testbed's data and reward unless others are given."""

    model: str = testbed.NAME
    config: str | None = None
    """A shape of `shapes.SHAPES`, or a config.json: in place of the model, one with random weights."""
    reward_model: str | None = None
    task: str = "hh_rlhf"
    data: Path | None = None
    n_train: int = 32
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"

    def load(self) -> LanguageModel:
        """Return the model on its device."""
        device, dtype = pick_device(self.device), dtype_of(self.dtype)
        if self.config is not None:
            return random_model(self.config, device=device, dtype=dtype, seed=self.seed)
        return LanguageModel.load(self.model, device=device, dtype=dtype)

    def source(self) -> Protocol:
        """Return where data and reward come from, with nothing left open."""
        return Protocol(task=self.task, reward_model=self.reward_model, data=self.data, n_train=self.n_train).complete


class _Fitted(NamedTuple):
    steerings: dict[str, Steering]
    failures: dict[str, str]
    """By method, why there is no steering."""


def measure_latency(methods: str, subject: Subject, grid: Grid, progress: Progress = silent) -> dict[str, Any]:
    """Fit methods and time them beside the unsteered model; return the record, plain JSON values.

    On random weights, what a method learns is meaningless, and what it costs is the same: the same edits at the same
    places. A method that cannot be fitted has its reason under `failures`; `choosing` names those that choose among
    candidates. Raises SteerbenchError if none can be fitted, and before that if a prompt does not fit the context.
    """
    chosen = plan(methods)[1:]  # without the unsteered model, which is there anyhow
    source = subject.source()
    task = registry.load("tasks", subject.task)()
    with progress("load", 3) as advance:
        data = load_data(task, folder_of(subject.task, source.data))
        advance(1)
        lm = subject.load()
        grid.check_room(lm)
        advance(1)
        reward = RewardModel.load(str(source.reward_model), device=lm.device)
        advance(1)
    use_threads(_parameters(lm), lm.device)
    examples = fitting(lm, data.train, subject.n_train, prompt_limit(lm, ROLLOUT_TOKENS, None), Counter())
    prompts = grid_prompts(lm, grid)  # mistakes in their length before long work
    context = FitContext(
        lm=lm,
        examples=examples,
        reward=reward,
        seed=subject.seed,
        decoding=Decoding(max_new_tokens=ROLLOUT_TOKENS),
        batch_size=min(_FIT_BATCH, max(grid.batch_sizes)),
        progress=progress,
    )
    fitted = _fit(chosen, context)
    cells = time_grid(lm, fitted.steerings, reward, grid, prompts, progress)
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "steerbench": steerbench.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "methods": {str(m.spec): m.parts(tuned=False) for m in chosen},
        "model": _model(lm),
        "fit": {"task": subject.task, "data": data.revision, "examples": len(examples), "seed": subject.seed},
        "reward_model": {"name": reward.name, "revision": reward.revision},
        "grid": asdict(grid),
        "device": device_label(lm.device),
        "memory": memory_of(lm.device),
        "machine": {**environment(lm.device), **driver(lm.device)},
        "failures": fitted.failures,
        "choosing": [name for name, steering in fitted.steerings.items() if steering.decode],
        "cells": cells,
    }


def _fit(methods: Sequence[Method], context: FitContext) -> _Fitted:
    """Fit each method by itself. Raises SteerbenchError if none can be fitted."""
    fitted = _Fitted({}, {})
    with context.progress("fit", len(methods)) as advance:
        for method in methods:
            try:
                fitted.steerings[str(method.spec)] = method.fit(replace(context, report={}))
            except Exception as error:  # a method's own fault sinks no other
                fitted.failures[str(method.spec)] = reason(error)
            advance(1)
    if fitted.failures and not fitted.steerings:
        name, why = next(iter(fitted.failures.items()))
        raise SteerbenchError(f"no method could be fitted. {name}: {why}")
    return fitted


def _model(lm: LanguageModel) -> dict[str, Any]:
    config = lm.model.config.get_text_config(decoder=True)
    return {
        "name": lm.name,
        "revision": lm.revision,
        "weights": "random" if isinstance(lm, RandomModel) else "trained",
        "type": lm.model.config.model_type,
        "parameters": _parameters(lm),
        "layers": lm.n_layers,
        "width": config.hidden_size,
        "vocabulary": config.vocab_size,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "attention": str(config._attn_implementation),
    }


def _parameters(lm: LanguageModel) -> int:
    return sum(p.numel() for p in lm.model.parameters())
