"""Two classes of training prompts, and what tells them apart: what a gate is fitted on."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from steerbench.data.dialogue import Dialogue
from steerbench.engine.activations import activations_at
from steerbench.errors import SteerbenchError, suggest
from steerbench.learn.context import FitContext
from steerbench.models.language_model import Tokens
from steerbench.models.sites import Site
from steerbench.steering.parts import GatePool

Condition = Literal["low_reward", "declined"]
"""Which training prompts are the class that a gate is to open for.

- `low_reward`: the half to which the unsteered model's response has the lowest rewards; of equal ones, the first
- `declined`: those with a reply in the data, preferred or other, that declines to help, told by its words
"""
DECLINING = (
    "cannot help",
    "can't help",
    "will not help",
    "won't help",
    "not able to help",
    "cannot assist",
    "can't assist",
    "not able to assist",
    "have to say no",
    "would be wrong",
    "against the law",
    "is illegal",
)
"""Words by which a reply declines, in lower case: ours, after the lists of substrings that refusals are counted by."""
FEWEST = 4
"""Prompts of each class below which nothing is fitted."""


class PromptClass(NamedTuple):
    """Which of the training prompts are of the class, and of which group each is."""

    inside: Tensor
    """(prompts,), bool, in the order of the examples."""
    groups: list[str]
    """(prompts,): prompts of one group are alike."""


class Threshold(NamedTuple):
    """A threshold of a gate, with how well it tells the classes apart."""

    value: float
    above: bool
    """Whether the class lies above it."""
    f1: float
    accuracy: float
    """Share of prompts on the right side."""


def prompt_class(context: FitContext, condition: Condition) -> PromptClass:
    """Return the class that a condition names. Raises SteerbenchError where one of the two classes is too small."""
    if condition == "low_reward":
        rewards = torch.tensor([rollout.reward for rollout in context.rollouts()])
        inside = rewards.argsort(stable=True).argsort() < len(rewards) // 2
    elif condition == "declined":
        replies = [f"{e.chosen}\n{e.rejected}".lower().replace("’", "'") for e in context.examples]
        inside = torch.tensor([any(words in reply for words in DECLINING) for reply in replies])
    else:
        raise SteerbenchError(suggest("condition of a gate", condition, list(get_args(Condition))))
    few = min(int(inside.sum()), int((~inside).sum()))
    if few < FEWEST:
        raise SteerbenchError(
            f"condition={condition} splits {len(inside)} training prompts {int(inside.sum())} to "
            f"{int((~inside).sum())}; a gate needs {FEWEST} of each. Use more training examples or another condition."
        )
    return PromptClass(inside, [example.group for example in context.examples])


def prompt_states(
    context: FitContext, sites: Sequence[Site], pool: GatePool, prompts: Sequence[Dialogue] | None = None
) -> dict[Site, Tensor]:
    """Return the state of each training prompt, or of each of other prompts, at each site, (prompts, width)."""
    dialogues = [e.prompt for e in context.examples] if prompts is None else prompts
    tokens = [context.lm.tokens(dialogue) for dialogue in dialogues]
    if pool == "last_prompt":
        states = context.activations_at(sites, tokens, "last_prompt")
        return {site: torch.stack(states[site]) for site in sites}
    means = context.once(("prompt means", *sites, tuple(tokens)), lambda: _means(context, sites, tokens))
    return dict(zip(sites, means, strict=True))


def _means(context: FitContext, sites: Sequence[Site], tokens: Sequence[Tokens]) -> list[Tensor]:
    """Return the mean state of each prompt, a site after another; states of single tokens are not kept."""
    means: dict[Site, list[Tensor]] = {site: [] for site in sites}
    size = context.batch_size
    for start in range(0, len(tokens), size):
        read = activations_at(context.lm, sites, tokens[start : start + size], "all", batch_size=size)
        for site in sites:
            means[site] += [rows.mean(0) for rows in read[site]]
    return [torch.stack(means[site]) for site in sites]


def between_classes(states: Tensor, inside: Tensor) -> Tensor:
    """Return mean(class) - mean(rest), (width,); `states` is (prompts, width), `inside` (prompts,)."""
    return states[inside].mean(0) - states[~inside].mean(0)


def held_out_measures(
    states: Tensor, found: PromptClass, fit: Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]
) -> Tensor:
    """Return for each prompt what a measure that was fitted on the other half of the groups says of it, (prompts,).

    `fit(states, inside)` returns the measure: states (rows, width) to (rows,). What is fitted on a prompt separates it
    better than it does a new one, and a threshold found there would lie wrong. Raises SteerbenchError where a half has
    one class only.
    """
    rows_by_class = [*found.inside.nonzero()[:, 0].tolist(), *(~found.inside).nonzero()[:, 0].tolist()]
    order = {group: i for i, group in enumerate(dict.fromkeys(found.groups[row] for row in rows_by_class))}
    half = torch.tensor([order[group] % 2 for group in found.groups])
    measured = torch.empty(len(states))
    for side in (0, 1):
        rows, others = half == side, half != side
        if not 0 < int(found.inside[others].sum()) < int(others.sum()):
            raise SteerbenchError("half of the training prompts has one class only; use more training examples.")
        measured[rows] = fit(states[others], found.inside[others])(states[rows])
    return measured


def best_threshold(measured: Tensor, inside: Tensor) -> Threshold:
    """Return the threshold with the best F1 of the class, on either side of it, among midpoints of neighbours.

    Of several the first is taken, from low to high, above before below. Raises ValueError where all are measured alike.
    """
    values = torch.unique(measured.double())
    if len(values) < 2:
        raise ValueError("a gate measures the same of every prompt")
    candidates = (values[1:] + values[:-1]) / 2
    found = [_scored(measured, inside, float(value), above) for above in (True, False) for value in candidates]
    return max(found, key=lambda threshold: threshold.f1)


def _scored(measured: Tensor, inside: Tensor, value: float, above: bool) -> Threshold:
    opened = measured > value if above else measured < value
    hits, wrong = int((opened & inside).sum()), int((opened != inside).sum())
    return Threshold(value, above, 2 * hits / (2 * hits + wrong), 1 - wrong / len(inside))
