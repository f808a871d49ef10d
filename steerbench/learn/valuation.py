"""The value function of the rollouts: what RE-Control climbs and what controlled decoding chooses by, fitted once."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from steerbench.errors import SteerbenchError
from steerbench.learn.context import FitContext
from steerbench.learn.value import Also, Split, Training, ValueFunction, calibration, train_value
from steerbench.models.sites import Site

FINAL = Site("final")
SAMPLE = 256
"""States that calibrate a step."""


class RolloutValue(NamedTuple):
    """A value function, some of the states that it was trained on, and what there is to say about it."""

    function: ValueFunction
    sample: Tensor
    """(states, width), on the model's device."""
    reward_mean: float
    reward_spread: float
    """Mean and standard deviation of the rewards of the rollouts."""
    report: dict[str, Any]


def rollout_value(context: FitContext, training: Training) -> RolloutValue:
    """Train a value function on the states at `final` that the tokens of the rollouts were drawn from, once per run.

    Raises SteerbenchError where no rollout has a token.
    """
    return context.once(("value function", context.seed, training), lambda: value_of_rollouts(context, training))


def value_of_rollouts(context: FitContext, training: Training, also: Also | None = None) -> RolloutValue:
    """Train a value function as `rollout_value` does, anew, with what `also` adds to its loss: see `train_value`.

    The rollouts of `also` are those of `context.rollouts()` that have a token, in order.
    """
    rollouts = [r for r in context.rollouts() if r.tokens.response]
    if not rollouts:
        raise SteerbenchError("no rollout has a token to learn from; raise --max-new-tokens or --n-train.")
    states = context.states(FINAL, [r.tokens for r in rollouts])
    rewards = torch.tensor([r.reward for r in rollouts])
    split = Split.of([r.group for r in rollouts], context.generator("split"))
    generator, device = context.generator("value"), context.lm.device
    fitted = train_value(
        states, rewards, split, training, generator=generator, device=device, progress=context.progress, also=also
    )
    report = {
        "rollouts": {name: len(rows) for name, rows in split._asdict().items()},
        "epochs": len(fitted.errors),
        "best_epoch": fitted.best_epoch,
        "validation_error": fitted.errors[fitted.best_epoch] if fitted.errors else None,
        "correlation": calibration(fitted.value, states, rewards, split.report),
    }
    (some,) = states.batches(range(64), 64, context.generator("sample"))
    chosen = torch.randperm(len(some.states), generator=context.generator("states"))[:SAMPLE]
    sample = some.states[chosen].to(device)
    return RolloutValue(fitted.value, sample, float(rewards.mean()), float(rewards.std(correction=0)), report)
