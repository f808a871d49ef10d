"""A head that tells from the current state alone what each next token adds to the value: controlled decoding's Q.

Q(o, z) = <A o + a, P e_z> is regressed on V(o_t+1) - V(o_t) of the tokens of rollouts, and on reward - V(o_t) at their
last ones. What V says of the state itself is left out: it is the same for all tokens. Source: Mudgal et al. 2024, arXiv
2310.17022, whose prefix scorer has to be asked about each token.
"""

import math
from collections.abc import Collection, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from steerbench.errors import SteerbenchError
from steerbench.learn.context import FitContext
from steerbench.learn.rollout import Rollout
from steerbench.learn.states import States
from steerbench.learn.valuation import FINAL
from steerbench.learn.value import Split, ValueFunction

EPOCHS, PATIENCE, LR, BATCH = 60, 6, 1e-3, 16
"""Of Adam, in rollouts; training ends after `PATIENCE` epochs that do not help the validation rollouts."""


class NextTokenHead(NamedTuple):
    """Q(o, z) = <down @ o + offset, tokens[:, z]>, in units of the reward."""

    down: Tensor
    """(rank, width)."""
    offset: Tensor
    """(rank,)."""
    tokens: Tensor
    """(rank, vocabulary)."""
    explained: float | None
    """Share of the variance of what tokens add that it explains on validation rollouts; None without any."""

    def __call__(self, states: Tensor) -> Tensor:
        """Return Q of all next tokens; (..., width) gives (..., vocabulary)."""
        return linear(states, self.down, self.offset) @ self.tokens


class _Steps(NamedTuple):
    """Steps of some rollouts: states in training units, tokens, and what each token added to the value."""

    states: Tensor
    tokens: Tensor
    added: Tensor


class _Batches(Protocol):
    """Yields the steps of some rollouts."""

    def __call__(self, rows: Collection[int], generator: torch.Generator | None = None) -> Iterator[_Steps]: ...


def next_token_head(context: FitContext, value: ValueFunction, rank: int, key: object) -> NextTokenHead:
    """Train a head on the rollouts of a run, once; `key` names the value function.

    Raises SteerbenchError if training diverges.
    """
    return context.once(("next token head", context.seed, rank, key), lambda: _train(context, value, rank))


def _train(context: FitContext, value: ValueFunction, rank: int) -> NextTokenHead:
    rollouts = [r for r in context.rollouts() if r.tokens.response]
    states = context.states(FINAL, [r.tokens for r in rollouts])
    split = Split.of([r.group for r in rollouts], context.generator("split"))
    mean, scale = _units(states, split.train)
    directions = token_directions(context, rank)

    def steps(rows: Collection[int], generator: torch.Generator | None = None) -> Iterator[_Steps]:
        for batch in states.batches(rows, BATCH, generator):
            chosen = [rollouts[i] for i in batch.rows]
            tokens = torch.tensor([token for r in chosen for token in r.tokens.response])
            added = _added(value(batch.states), batch.lengths, chosen)
            yield _Steps((batch.states - mean) / scale, tokens, added)

    down, offset, explained = _fitted(steps, split, directions, len(mean), context)
    down = down / scale
    return NextTokenHead(down, offset - down @ mean, directions, explained)


def _fitted(
    steps: _Batches, split: Split, directions: Tensor, width: int, context: FitContext
) -> tuple[Tensor, Tensor, float | None]:
    """Return A and a in training units, of the epoch that is best on validation rollouts, and what they explain."""
    spread = torch.cat([s.added for s in steps(split.train)]).std(correction=0).clamp_min(1e-12)
    down = torch.zeros(len(directions), width, requires_grad=True)
    offset = torch.zeros(len(directions), requires_grad=True)
    optimizer = torch.optim.AdamW([down, offset], lr=LR / width**0.5, weight_decay=0.01)
    best, errors = (down.detach().clone(), offset.detach().clone()), [math.inf]
    generator = context.generator("next token head")
    with context.progress("next-token head", EPOCHS) as advance, torch.enable_grad():
        for epoch in range(EPOCHS):
            for batch in steps(split.train, generator):
                loss = (_score(batch, down, offset, directions) - batch.added / spread).square().mean()
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
            advance(1)
            error = _error(steps(split.validation or split.train), down, offset, directions, spread)
            if error < min(errors):
                best = (down.detach().clone(), offset.detach().clone())
            errors.append(error)
            if epoch + 1 - errors.index(min(errors)) >= PATIENCE:
                break
    if not math.isfinite(min(errors)):
        raise SteerbenchError("training of the next-token head diverged: rewards or states are not finite.")
    added = torch.cat([s.added for s in steps(split.validation)]) / spread if split.validation else None
    explained = None if added is None else 1 - min(errors) / float(added.square().mean().clamp_min(1e-12))
    return best[0] * spread, best[1] * spread, explained


def _added(values: Tensor, lengths: list[int], rollouts: list[Rollout]) -> Tensor:
    """Return what each token added to the value: V behind it, the reward behind the last one, less V before it."""
    ends = torch.tensor(lengths).cumsum(0) - 1
    after = torch.cat([values[1:], values[:1]])
    after[ends] = torch.tensor([r.reward for r in rollouts], dtype=after.dtype)
    return after - values


def _score(batch: _Steps, down: Tensor, offset: Tensor, directions: Tensor) -> Tensor:
    return (linear(batch.states, down, offset) * directions[:, batch.tokens].T).sum(-1)


@torch.no_grad()
def _error(batches: Iterator[_Steps], down: Tensor, offset: Tensor, directions: Tensor, spread: Tensor) -> float:
    """Return the mean squared error, in units of the variance of what tokens add."""
    errors = [(_score(b, down, offset, directions) - b.added / spread).square() for b in batches]
    return float(torch.cat(errors).mean())


def _units(states: States, rows: Collection[int]) -> tuple[Tensor, Tensor]:
    """Return the mean state, (width,), and the mean spread of its values."""
    total = torch.cat([batch.states for batch in states.batches(rows, 64)])
    return total.mean(0), total.std(0, correction=0).mean().clamp_min(1e-6)


@torch.no_grad()
def token_directions(context: FitContext, rank: int) -> Tensor:
    """Return what tells tokens apart: unembeddings along their first principal directions, (rank, vocabulary).

    Centred, each direction with unit variance over the vocabulary.
    """
    weight = context.lm.anatomy.head.get_parameter("weight").float().cpu()
    rows = weight - weight.mean(0)
    _, vectors = torch.linalg.eigh((rows.T @ rows).double())
    found = (rows @ vectors[:, -min(rank, rows.shape[1]) :].float()).T
    found = found / found.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
    signs = found.gather(1, found.abs().argmax(1, keepdim=True)).sign()
    directions: Tensor = (found * signs).contiguous()
    return directions
