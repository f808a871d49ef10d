"""`steerbench latency`: fit methods on a model, trained or random, and time them over a grid."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from steerbench import testbed
from steerbench.bench.method import Method
from steerbench.bench.protocol import FitSettings
from steerbench.bench.setup import Options, Setup
from steerbench.bench.units import plan
from steerbench.decoding import Decoding
from steerbench.engine.timing import memory_of
from steerbench.errors import SteerbenchError
from steerbench.latency.clocks import driver
from steerbench.latency.grid import Grid, grid_prompts, time_grid
from steerbench.latency.latency_record import KIND, SCHEMA_VERSION
from steerbench.latency.shapes import RandomModel, random_model
from steerbench.learn.context import FitContext
from steerbench.models.failure import reason
from steerbench.models.language_model import LanguageModel
from steerbench.models.machine import device_label, dtype_of, environment, use_threads
from steerbench.steering.steering import Steering
from steerbench.version import __version__

ROLLOUT = Decoding(max_new_tokens=32)
"""What a method learns from here."""
_FIT_BATCH = 16


class _Fitted(NamedTuple):
    steerings: dict[str, Steering]
    failures: dict[str, str]
    """By method, why there is no steering."""


def measure_latency(
    methods: str, settings: FitSettings, grid: Grid, options: Options = Options(), *, config: str | None = None
) -> dict[str, Any]:
    """Fit methods and time them beside the unsteered model; return the record, plain JSON values.

    Methods learn from the testbed's data and reward unless the settings name others, and from short responses. `config`
    is a shape of `shapes.SHAPES`, or a config.json: in place of the model, one with random weights. What a method
    learns on it is meaningless, and what it costs is the same: the same edits at the same places. A method that cannot
    be fitted has its reason under `failures`; `choosing` names those that choose among candidates. Raises
    SteerbenchError if none can be fitted, and before that if a prompt does not fit the context.
    """
    chosen = plan(methods)[1:]  # without the unsteered model, which is there anyhow
    setup = _load(settings, grid, options, config, chosen)
    lm, reward = setup.lm, setup.reward
    prompts = grid_prompts(lm, grid)  # mistakes in their length before long work
    fitted = _fit(chosen, setup.context(grid.seed))
    cells = time_grid(lm, fitted.steerings, reward, grid, prompts, options.progress)
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "steerbench": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "methods": {str(m.spec): m.parts(tuned=False) for m in chosen},
        "model": _model(lm),
        "fit": {
            "task": settings.task,
            "data": setup.data.revision,
            "examples": len(setup.train),
            "seed": grid.seed,
        },
        "reward_model": {"name": reward.name, "revision": reward.revision},
        "grid": asdict(grid),
        "device": device_label(lm.device),
        "memory": memory_of(lm.device),
        "machine": {**environment(lm.device), **driver(lm.device)},
        "failures": fitted.failures,
        "choosing": [name for name, steering in fitted.steerings.items() if steering.decode],
        "cells": cells,
    }


def _load(settings: FitSettings, grid: Grid, options: Options, config: str | None, methods: Sequence[Method]) -> Setup:
    """Load what methods are fitted on, from the testbed what the settings leave open."""
    testbeds = replace(settings, model=testbed.NAME).complete
    settings = replace(settings, reward_model=testbeds.reward_model, data=testbeds.data, decoding=ROLLOUT)
    setup = Setup(settings, replace(options, batch_size=min(_FIT_BATCH, max(grid.batch_sizes))))
    with options.progress("load", 3) as advance:
        if config is not None:
            setup.lm = random_model(config, device=setup.device, dtype=dtype_of(settings.dtype), seed=grid.seed)
            if options.threads is None:
                use_threads(_parameters(setup.lm), setup.device)
        setup.check_settings(methods)
        _ = setup.data
        advance(1)
        grid.check_room(setup.lm)
        advance(1)
        _ = setup.reward
        advance(1)
    return setup


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
