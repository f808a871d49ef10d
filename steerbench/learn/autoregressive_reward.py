"""An autoregressive reward: a low-rank adapter under which preferred replies are likelier than others.

L = -log sigma(beta * (log p_r(preferred | x) - log p_r(other | x))), where p_r is the model with an adapter at the
output projections of attention and feed-forward part of each block. There is no reference term: the reward of a reply
is the sum of the log-probabilities of its tokens, so that each token has one. Source: Xu et al. 2025, "GenARM",
ICLR 2025, arXiv 2410.08193, equation 6.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.optim import AdamW

from steerbench.engine.activations import drawn_from
from steerbench.engine.gradients import trainable
from steerbench.errors import SteerbenchError
from steerbench.learn.context import FitContext, Pair
from steerbench.models.language_model import LanguageModel, Tokens
from steerbench.models.modes import evaluating
from steerbench.models.sites import Site
from steerbench.steering.low_rank import LowRank
from steerbench.steering.parts import PlacedEdit


@dataclass(frozen=True, kw_only=True)
class AdapterTraining:
    """How the adapter is trained. `lr` is that of AdamW, `batch_size` in pairs, `beta` in inverse nats."""

    rank: int
    lr: float
    beta: float
    epochs: int
    batch_size: int

    def __post_init__(self) -> None:
        if min(self.rank, self.epochs, self.batch_size) < 1 or not 0 < self.lr < math.inf:
            raise SteerbenchError("rank, epochs and batch_size must be 1 or more, and lr a number above 0.")


class AutoregressiveReward(NamedTuple):
    """The adapter as tensors, and how it came to tell the pairs apart."""

    sites: list[Site]
    downs: list[Tensor]
    """(rank, width) at each site, on the CPU."""
    ups: list[Tensor]
    """(width, rank) at each site, on the CPU."""
    losses: list[float]
    """By epoch, the mean over its batches."""

    @property
    def edits(self) -> tuple[PlacedEdit, ...]:
        """The adapter as edits."""
        rows = zip(self.sites, self.downs, self.ups, strict=True)
        return tuple(PlacedEdit(site, LowRank(down, up), "all") for site, down, up in rows)


def train_autoregressive_reward(context: FitContext, training: AdapterTraining) -> AutoregressiveReward:
    """Train an adapter on the preference pairs of the train split, once per run."""
    return context.once(("autoregressive reward", context.seed, training), lambda: _train(context, training))


def _train(context: FitContext, training: AdapterTraining) -> AutoregressiveReward:
    lm, pairs = context.lm, context.pairs()
    edits = _fresh(context, training.rank)
    optimizer = AdamW([t for p in edits for t in p.edit.buffers()], lr=training.lr, weight_decay=0.0)
    generator = context.generator("adapter batches")
    losses: list[float] = []
    with context.progress("autoregressive reward", training.epochs * len(pairs)) as advance:
        for _ in range(training.epochs):
            found = []
            for rows in torch.split(torch.randperm(len(pairs), generator=generator), training.batch_size):
                found.append(_step(lm, [pairs[i] for i in rows.tolist()], edits, optimizer, training))
                advance(len(rows))
            losses.append(sum(found) / len(found))
    if not math.isfinite(losses[-1]):
        raise SteerbenchError("training of the autoregressive reward diverged; lower its learning rate.")
    downs, ups = ([p.edit.get_buffer(name).detach().cpu() for p in edits] for name in ("down", "up"))
    return AutoregressiveReward([p.site for p in edits], downs, ups, losses)


def _step(
    lm: LanguageModel, pairs: Sequence[Pair], edits: Sequence[PlacedEdit], optimizer: AdamW, training: AdapterTraining
) -> float:
    """Take one step on some pairs, a few at a time, and return their mean loss."""
    optimizer.zero_grad()
    total = 0.0
    for start in range(0, len(pairs), 8):
        some = pairs[start : start + 8]
        preferred, other = response_log_probs(lm, [*(p.chosen for p in some), *(p.rejected for p in some)], edits)
        with torch.enable_grad():
            loss = -logsigmoid(training.beta * (preferred - other)).sum() / len(pairs)
            torch.autograd.backward(loss)
        total += float(loss.detach())
    optimizer.step()
    return total


def response_log_probs(
    lm: LanguageModel, tokens: Sequence[Tokens], edits: Sequence[PlacedEdit]
) -> tuple[Tensor, Tensor]:
    """Return log p of the first and of the second half of some responses, with gradients, (responses / 2,) each."""
    batch = lm.right_padded(tokens)
    with evaluating(lm.model), trainable(lm, edits, batch):
        out = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        found = []
        for row, t in zip(out, tokens, strict=True):
            target = torch.tensor(t.response, device=row.device)[:, None]
            found.append(row[drawn_from(t)].float().log_softmax(-1).gather(1, target).sum())
        return tuple(torch.stack(found).chunk(2))  # type: ignore[return-value]


def _fresh(context: FitContext, rank: int) -> list[PlacedEdit]:
    """Return an adapter that changes nothing yet: `down` is drawn, `up` is 0."""
    generator = context.generator("adapter")
    edits = []
    for site in [*context.sites("z"), *context.sites("mlp_out")]:
        place = context.lm.anatomy.place(site)
        width = _width(context.lm, place.module, place.side)
        down = torch.randn(rank, width, generator=generator) / width**0.5
        edit = LowRank(down, torch.zeros(width, rank)).to(next(place.module.parameters()).device)
        for tensor in edit.buffers():
            tensor.requires_grad_()
        edits.append(PlacedEdit(site, edit, "all"))
    return edits


def _width(lm: LanguageModel, module: torch.nn.Module, side: str) -> int:
    """Return the width of the states at one side of a module, as a pass over one token shows it."""
    seen: list[int] = []

    def note(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        states = args[0] if side == "input" else output if isinstance(output, Tensor) else output[0]
        seen.append(states.shape[-1])

    handle = module.register_forward_hook(note)
    try:
        with torch.no_grad(), evaluating(lm.model):
            lm.model(input_ids=torch.tensor([[lm.pad_id]], device=lm.device), use_cache=False)
    finally:
        handle.remove()
    return seen[-1]
