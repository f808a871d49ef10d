"""RePS, reference-free preference steering: one vector that is learned at many strengths, and that can be taken out.

Paper: Wu et al., "Improved Representation Steering for Language Models", 2025, arXiv 2505.20809.

    steered  h + f v,  f drawn from `FACTORS`        nulled  h - relu(<h, v>) v / |v|^2
    min over v of  -log sigmoid( s m_steered(w) - m_steered(l) ) - log sigmoid( t m_nulled(l) - m_nulled(w) )
    s = max(log p(l) - log p(w), 1),   t = max(log p(w) - log p(l), 1)
    h <- h + strength * v

at the output of one block; m(y) is the mean log-probability of a reply's tokens, w the preferred reply, l the other
one, log p that of the unsteered model. It is a SimPO loss without a reference in the margins: v has to make w likely by
itself, and what the model says without v has to be l.

Differences from the authors' code (stanfordnlp/axbench): pairs of preferences stand for replies with and without a
concept. `lr` is a share of the root mean square of the state's components, so that it carries over; theirs is 0.08
whatever the states. One factor is drawn for a mini-batch, theirs for each reply. The bias of the gate is left out, and
v begins with a hundredth of the state's length. One group of prompts in five is held out: of several epochs the best is
kept.

Defaults: factors 2 to 20 as published, one epoch, learning rate falling linearly; layer 10 of 26 as for Gemma-2-2B, or
the same depth. `strength` is such a factor: theirs is chosen on data held out, ours by tuning `relative_norm`.

Cost: to fit, forward and backward passes over both replies of each pair, steered and nulled, and one forward pass for
the unsteered model. To steer, one addition per token.

On the testbed it gains +0.47 of gold on HH-RLHF (+0.22 to +0.72) and, surely, +0.65 on SHP (0.05 nats per token, five
seeds, 96 test prompts): `bipo` gains 0.97 and 0.89 more from the same pairs. Tuned by the guide with eight trials it
gains +0.69 and +0.57, surely, mostly in the block at a fifth of the depth. On 64 validation prompts of HH-RLHF, one
seed, the guide gains 0.48 by default, 0.81 at `lr=0.005`, whose loss on pairs held out rises, and 0.47 after three
epochs. Beginning at a hundredth of the state's length, beside which little was learned, it gained nothing there.

Pitfalls: nothing holds the vector near the unsteered model; strong factors write badly.

Learns from: pairs. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Add, Edit, PlacedEdit, Site
from steerbench.learn import (
    Count,
    EditTraining,
    Layer,
    Positive,
    ScaledSimPO,
    TrainedVector,
    Whole,
    at_relative_norm,
    block_at,
    contrast,
    leaf,
    train_edits,
)

DEPTH = 10 / 26
FIRST = 0.001
"""Length of the vector that training begins with, as a share of the state's: little beside what is learned."""
FACTORS = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0)


class Null(Edit):
    """h - relu(<h, v>) v / |v|^2: what of v there is in h is taken out, and what is against it stays."""

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.register_buffer("vector", vector)

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Take the vector out at every position."""
        v = self.get_buffer("vector")
        return h - (h @ v).relu()[..., None] * v / v.square().sum()


@dataclass(frozen=True, kw_only=True)
class RePS(Steerer):
    """A vector that makes preferred replies likely by itself, and the others likely where it is taken out.

    - `strength`: in units of the vector's own length, as the factors of its training
    - `relative_norm`: length of the vector as a share of the mean length of the states, at strength 1; None: as learned
    - `layer`: block from 0, or a share of the depth such as 0.4; None: 10/26 of the depth
    - `lr`: learning rate of AdamW, as a share of the root mean square of the state's components
    - `epochs`: at most; the best one is kept
    - `batch_size`: pairs in a step of training
    - `scope`: positions that are edited, in training as well
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "relative_norm": (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6),
        "layer": (0.2, 0.4, 0.6, 0.8),
    }

    strength: float = 1.0
    relative_norm: float | None = 0.3
    layer: Layer | None = None
    lr: Positive = 0.002
    epochs: Whole = 1
    batch_size: Count = 16
    scope: Literal["all", "response"] = "all"

    def fit(self, context: FitContext) -> Steering:
        """Learn the vector, and describe its addition."""
        site = Site("resid_post", block_at(context.lm, DEPTH, self.layer))
        key = ("vector", context.seed, site, self.lr, self.epochs, self.batch_size, self.scope)
        learned = context.once(key, lambda: self._learn(context, site))
        states = contrast(context, site, "response_mean")
        vector = at_relative_norm(learned.vector, states, self.relative_norm)
        context.report.update(learned.report, length=float(learned.vector.norm()) / states.mean_length)
        return Steering(edits=(PlacedEdit(site, Add(vector, self.strength), self.scope),))

    def _learn(self, context: FitContext, site: Site) -> TrainedVector:
        states = contrast(context, site, "response_mean")
        width = states.preferred.shape[1]
        scale = states.mean_length / width**0.5
        drawn = torch.randn(width, generator=context.generator("first vector"))
        vector = leaf(context.lm, site, FIRST * scale * drawn)
        steered = [[PlacedEdit(site, Add(vector, factor), self.scope)] for factor in FACTORS]
        loss = ScaledSimPO(steered, [PlacedEdit(site, Null(vector), self.scope)])
        training = EditTraining(
            lr=self.lr * scale, batch_size=self.batch_size, epochs=self.epochs, decay="linear", warmup=0.1
        )
        found = train_edits(context, steered[0], loss, training)
        return TrainedVector(vector.cpu(), found.report())
