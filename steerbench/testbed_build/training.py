"""One training loop for all models of the testbed."""

import random
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from steerbench.models.machine import fast_dtype
from steerbench.progress import Progress
from steerbench.testbed.world import World
from steerbench.testbed_build.muon import Muon

Row = TypeVar("Row")

_CHUNK = 4096  # rows that are sorted by length together
_WARM_UP = 0.05
_ADAM_RATE = 3e-3  # of embeddings, norms and heads
_HEAD = 12  # at most so many rows: a score, or the answers of a map
_REPORT = 0.1  # share of the steps, the last ones, whose mean loss is returned


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; written into the manifest."""

    steps: int
    batch: int
    """Tokens in a step, padding included, for the language model; pairs in a step for the others."""
    rate: float
    """Peak learning rate of the matrices: linear warm-up over 5 % of the steps, then down to zero in a line."""


class Setting(NamedTuple):
    """What all trainings share."""

    world: World
    held: AbstractSet[str]
    """Openings of validation and test records, which no model is trained on."""
    device: torch.device
    progress: Progress


class Trained(NamedTuple):
    """A trained model, its tokenizer, and the mean loss of the last steps."""

    model: Any
    tokenizer: Any
    loss: float


def train(
    label: str,
    model: nn.Module,
    batches: Iterator[Any],
    loss_of: Callable[[Any], torch.Tensor],
    recipe: Recipe,
    setting: Setting,
) -> float:
    """Minimise `loss_of(batch)`, in bf16 where it is fast; return the mean loss of the last tenth of the steps.

    Matrices are trained by Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon), the rest by AdamW: in equal
    time, the language model then comes four times as near to the entropy of the world as by AdamW alone.
    """
    optimisers = _optimisers(model, recipe.rate)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(step / recipe.steps)) for o in optimisers]
    losses: list[float] = []
    narrow = fast_dtype(setting.device) == torch.bfloat16
    model.train()
    with setting.progress(f"train {label}", recipe.steps) as advance:
        for _ in range(recipe.steps):
            with torch.autocast(setting.device.type, torch.bfloat16, enabled=narrow):
                loss = loss_of(next(batches))
            model.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser, schedule in zip(optimisers, schedules, strict=True):
                optimiser.step()
                schedule.step()
            losses.append(loss.item())
            advance(1)
    model.eval()
    tail = losses[-max(1, round(_REPORT * len(losses))) :]
    return sum(tail) / len(tail)


def _optimisers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [p for p in model.parameters() if p.dim() == 2 and id(p) not in embeddings and min(p.shape) > _HEAD]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=rate),
        torch.optim.AdamW(others, lr=_ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _rate(done: float) -> float:
    return min(1.0, done / _WARM_UP + 0.01) * (1 - done)


def batches_of(
    rows: Sequence[Row], rng: random.Random, length: Callable[[Row], int], fits: Callable[[int, int], bool]
) -> Iterator[list[Row]]:
    """Yield batches of rows of like length for ever, in a random order; `fits(n, longest)` bounds a batch.

    Raises ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("no rows to train on")
    while True:
        order = rng.sample(range(len(rows)), len(rows))
        for start in range(0, len(order), _CHUNK):
            chunk = sorted((rows[i] for i in order[start : start + _CHUNK]), key=length)
            batches: list[list[Row]] = [[]]
            for row in chunk:  # sorted: the newest row is the longest
                if batches[-1] and not fits(len(batches[-1]) + 1, length(row)):
                    batches.append([])
                batches[-1].append(row)
            yield from rng.sample(batches, len(batches))


def padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right-padded ids and their mask, both (batch, longest)."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids.to(device), mask.to(device)
