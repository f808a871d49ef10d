"""BiPO, bi-directional preference optimisation: one vector, learned from preferences by gradient.

Paper: Cao et al., "Personalized Steering of Large Language Models: Versatile Steering Vectors Through Bi-directional
Preference Optimization", NeurIPS 2024, arXiv 2406.00045.

    min over v of E [ -log sigmoid( d beta ( log p_dv(w) / p(w) - log p_dv(l) / p(l) ) ) ],    d from -1 and 1
    h <- h + strength * v

at the output of one block. p_dv is the frozen model with d * v added, w the preferred reply and l the other one; one d
is drawn for each mini-batch. Both signs are trained, so that -v does the opposite. v begins at 0, where the loss is
log 2.

Differences from the authors' code (CaoYuanpu/BiPO @cef1d00):
- `lr` is in units of the state, a share of the root mean square of its components at the block, so that it carries over
  to another model; theirs is 5e-4 for Llama-2-7B and Mistral-7B, whatever the states;
- two passes over the pairs by default, theirs up to 100, of which the published vectors are epochs 5 to 20. One group
  of prompts in five is held out, and the epoch with the lowest loss there is kept; theirs reports it and keeps all;
- the warm-up is a tenth of all steps; theirs is 100 steps. Mini-batches hold pairs of about one length;
- their training adds v to every position of prompt and reply, as `scope=all` does here in training and use.

Defaults: beta 0.1, AdamW with weight decay 0.05, cosine, layer 15 of 32, or the same depth; 16 pairs in a step, theirs
4: on the testbed, whose replies differ in much that is of no matter, steps of four pairs hardly got beyond their noise.
`relative_norm` gives the vector a length of its own; the fit, which is dear, is done once for all lengths.

Cost: to fit, two epochs of forward and backward passes over both replies of each pair, and one forward pass for the
unsteered model: 135 s of CPU time on the testbed with 512 pairs, on one thread of a busy machine. To steer, one
addition per token.

On the testbed it and `repe` gain most of all edits (0.05 nats per token, five seeds, 96 test prompts): +1.45 of gold on
HH-RLHF and +1.54 on SHP, surely; `caa` gains 0.95 and 1.18 less from the same pairs, a prompt 0.64 and 0.50 more. Tuned
by the guide with eight trials it gains +1.40 and +1.45, the most of all edits alone. At equal KL the vector is 0.37 to
0.42 of the states' length, about as long as it is learned; on the first testbed training ended at a tenth.

Pitfalls: it learns what tells w from l, length and format included. Without a length of its own the vector is as long
as training left it, which depends on `lr` and `epochs`: tune `relative_norm`.

Learns from: pairs. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.learn import (
    BidirectionalDPO,
    Count,
    EditTraining,
    Layer,
    Positive,
    TrainedVector,
    Whole,
    at_relative_norm,
    block_at,
    contrast,
    leaf,
    train_edits,
)

DEPTH = 15 / 32


@dataclass(frozen=True, kw_only=True)
class BiPO(Steerer):
    """A vector that makes preferred replies likelier than the others, and the other way round where it is subtracted.

    - `strength`: in units of the vector's own length
    - `relative_norm`: length of the shift as a share of the mean length of the states; None: as it was learned
    - `layer`: block from 0, or a share of the depth such as 0.4; None: 15/32 of the depth
    - `beta`: of the loss: how dear it is to leave the unsteered model
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
    relative_norm: float | None = None
    layer: Layer | None = None
    beta: Positive = 0.1
    lr: Positive = 0.06
    epochs: Whole = 2
    batch_size: Count = 16
    scope: Literal["all", "response"] = "all"

    def fit(self, context: FitContext) -> Steering:
        """Learn the vector, and describe its addition."""
        site = Site("resid_post", block_at(context.lm, DEPTH, self.layer))
        key = ("vector", context.seed, site, self.beta, self.lr, self.epochs, self.batch_size, self.scope)
        learned = context.once(key, lambda: self._learn(context, site))
        states = contrast(context, site, "response_mean")
        vector = at_relative_norm(learned.vector, states, self.relative_norm)
        context.report.update(learned.report, length=float(learned.vector.norm()) / states.mean_length)
        return Steering(edits=(PlacedEdit(site, Add(vector, self.strength), self.scope),))

    def _learn(self, context: FitContext, site: Site) -> TrainedVector:
        states = contrast(context, site, "response_mean")
        width = states.preferred.shape[1]
        vector = leaf(context.lm, site, torch.zeros(width))
        forward, backward = ([PlacedEdit(site, Add(vector, sign), self.scope)] for sign in (1.0, -1.0))
        training = EditTraining(
            lr=self.lr * states.mean_length / width**0.5,
            batch_size=self.batch_size,
            epochs=self.epochs,
            weight_decay=0.05,
            warmup=0.1,
            decay="cosine",
        )
        found = train_edits(context, forward, BidirectionalDPO(forward, backward, self.beta), training)
        return TrainedVector(vector.cpu(), found.report())
