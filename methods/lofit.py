"""LoFiT, localised fine-tuning: choose attention heads by a learned scaling, then learn a bias for each of them.

Paper: Yin, Ye and Durrett, "LoFiT: Localized Fine-tuning on LLM Representations", NeurIPS 2024, arXiv 2406.01563.

    1. min over A of  loss( z <- (1 + A) z at all heads ) + l1 * |A|_1;    keep the heads with the largest |A_head|_2
    2. min over v of  loss( z <- z + v at these heads )
    z <- z + strength * v

z is a head's slice of the input of the attention's output projection, as in ITI. The loss is that of DPO on pairs of
replies, or (`loss=sft`) the negative log-probability of the preferred reply per token. All positions of prompt and
reply are edited, so that what is learned is a bias of the output projection, and the engine runs it as one: decoding
costs nothing.

Differences from the authors' code (fc2869/lo-fit @09685ba), which trains with DPO where data are preferences and with
the negative log-probability otherwise:
- A and v begin at 0, theirs at normal numbers of size 0.001;
- `lr` of v is a share of the root mean square of z at the block, so that it carries over; theirs is 0.01 in units of z;
- one pass over the pairs to choose and two to learn by default, theirs 5 to 10 each. One group of prompts in five is
  held out, and the best epoch there is kept, as theirs does;
- AdamW without weight decay, the learning rate falling linearly to 0. Mini-batches hold pairs of about one length.

Defaults: 32 of 1,024 heads, that share of the heads of any model, one at least; l1 0.0005 and lr 0.005 for A, eight
pairs in a step, beta 0.5. `relative_norm` scales v: the shift of a layer, all its heads together, is then that share of
the mean length of z, on average over the layers. The fit, which is dear, is done once for all lengths.

Cost: to fit, forward and backward passes through the whole model over both replies of each pair, once to choose, and
from the first chosen layer on twice to learn, and one forward pass for the unsteered model: 170 s of CPU time on the
testbed with 512 pairs, on one thread of a busy machine. To steer, nothing.

On the testbed one head of 30 is chosen, one of two in all ten fits. At 0.05 nats per token (five seeds, 96 test
prompts) it gains +0.80 of gold on HH-RLHF (+0.37 to +1.23) and +0.58 on SHP (+0.23 to +0.92), which five fits do not
make sure among so many methods; `iti`, at the same site, gains nothing. Tuned by the guide with eight trials it gains
+1.18 and +1.33, surely: with a fifth to two fifths of the heads, and the two longest shifts, at 0.11 and 0.12 nats per
token.

Pitfalls: it is fine-tuning of few numbers, and learns what tells the replies apart, length and format included. The
heads differ between seeds where the pairs are few.

Learns from: pairs. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Add, Edit, PlacedEdit, Site
from steerbench.learn import (
    DPO,
    Contrast,
    Count,
    EditTraining,
    Heads,
    NotNegative,
    Pair,
    Positive,
    Trial,
    Whole,
    contrasts,
    imitation,
    leaf,
    train_edits,
)
from steerbench.learn.probes import by_head

SAMPLE = 64
"""Pairs that tell how long z is."""


class Scale(Edit):
    """(1 + factors) * h, (width,)."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.register_buffer("factors", factors)

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Scale each component."""
        return h + h * self.get_buffer("factors")


class HeadBias(Edit):
    """h + values at some heads of a layer; `values` is (chosen heads, d_head), the heads lie side by side in h."""

    def __init__(self, values: Tensor, heads: Sequence[int], n_heads: int) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.heads, self.n_heads = list(heads), n_heads

    def constant(self) -> Tensor:
        """Return the values in their places and 0 at the other heads, (width,)."""
        values = self.get_buffer("values")
        chosen = torch.tensor(self.heads, device=values.device)
        return values.new_zeros(self.n_heads, values.shape[1]).index_copy(0, chosen, values).flatten()

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Add the values."""
        return h + self.constant()


class Learned(NamedTuple):
    """Layers, the bias of each, (width of z,), the mean length of z there, and what there is to say of the training."""

    layers: list[int]
    vectors: list[Tensor]
    lengths: list[float]
    report: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LoFiT(Steerer):
    """Biases at the attention heads that a learned scaling picks.

    - `strength`: in units of the biases' own length
    - `relative_norm`: length of the shift of a layer as a share of the mean length of z; None: as it was learned
    - `n_heads`: heads that are steered, or a share of them below 1
    - `loss`: `dpo` on the pairs, or `sft` on the preferred replies alone
    - `beta`: of DPO: how dear it is to leave the unsteered model
    - `l1`: price of the scaling that picks heads
    - `scaling_lr`: learning rate of that scaling
    - `scaling_epochs`: passes over the pairs to pick heads at most
    - `lr`: learning rate of the biases, as a share of the root mean square of z's components
    - `epochs`: of the biases at most; the best one is kept
    - `batch_size`: pairs in a step of training
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "relative_norm": (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6),
        "n_heads": (0.03125, 0.1, 0.2, 0.4),
    }

    strength: float = 1.0
    relative_norm: float | None = None
    n_heads: Heads = 0.03125
    loss: Literal["dpo", "sft"] = "dpo"
    beta: Positive = 0.5
    l1: NotNegative = 5e-4
    scaling_lr: Positive = 5e-3
    scaling_epochs: Whole = 1
    lr: Positive = 0.05
    epochs: Whole = 2
    batch_size: Count = 8

    def fit(self, context: FitContext) -> Steering:
        """Choose the heads, learn their biases, and describe the shift."""
        sample = contrasts(context, context.sites("z"), "response_mean", context.pairs()[:SAMPLE])
        of_scaling = (self.loss, self.beta, self.l1, self.scaling_lr, self.scaling_epochs, self.batch_size)
        ranked = context.once(("heads", context.seed, of_scaling), lambda: self._ranked(context, sample))
        count = max(1, round(self.n_heads * len(ranked))) if isinstance(self.n_heads, float) else self.n_heads
        key = ("biases", context.seed, of_scaling, count, self.lr, self.epochs)
        learned = context.once(key, lambda: self._learned(context, sample, ranked[:count]))
        scale = self._scale(learned)
        context.report.update(
            learned.report, heads=[list(h) for h in ranked[:count]], heads_of_model=len(ranked), scale=scale
        )
        edits = (
            PlacedEdit(Site("z", i), Add(scale * v, self.strength), "all")
            for i, v in zip(learned.layers, learned.vectors, strict=True)
        )
        return Steering(edits=tuple(edits))

    def _ranked(self, context: FitContext, sample: Mapping[Site, Contrast]) -> list[tuple[int, int]]:
        """Return all heads as (layer, head), the one with the longest scaling first."""
        factors = {site: leaf(context.lm, site, torch.zeros(c.preferred.shape[1])) for site, c in sample.items()}
        edits = [PlacedEdit(site, Scale(factor), "all") for site, factor in factors.items()]
        training = self._training(self.scaling_lr, self.scaling_epochs)
        train_edits(context, edits, self._sparse(list(factors.values())), training)
        lengths = {
            (site.layer or 0, head): float(part.preferred.norm())
            for site, factor in factors.items()
            for head, part in enumerate(
                by_head(context.lm, site.layer or 0, Contrast(factor.cpu()[None], factor[None]))
            )
        }
        return sorted(lengths, key=lambda h: (-lengths[h], *h))

    def _learned(
        self, context: FitContext, sample: Mapping[Site, Contrast], chosen: Sequence[tuple[int, int]]
    ) -> Learned:
        """Learn the biases of the chosen heads."""
        edits = []
        for site, states in sample.items():
            n, width = context.lm.anatomy.n_heads(site.layer or 0), states.preferred.shape[1]
            if heads := sorted(head for layer, head in chosen if layer == site.layer):
                values = leaf(context.lm, site, torch.zeros(len(heads), width // n))
                edits.append(PlacedEdit(site, HeadBias(values, heads, n), "all"))
        square = [sample[p.site].mean_length ** 2 / sample[p.site].preferred.shape[1] for p in edits]
        training = self._training(self.lr * (sum(square) / len(square)) ** 0.5, self.epochs)
        found = train_edits(context, edits, DPO(self.beta) if self.loss == "dpo" else imitation, training)
        vectors = [c.cpu() for p in edits if (c := p.edit.constant()) is not None]
        lengths = [sample[p.site].mean_length for p in edits]
        return Learned([p.site.layer or 0 for p in edits], vectors, lengths, found.report())

    def _sparse(self, factors: Sequence[Tensor]) -> Any:
        plain = DPO(self.beta) if self.loss == "dpo" else imitation

        def loss(pairs: Sequence[Pair], trial: Trial) -> Tensor:
            return plain(pairs, trial) + self.l1 * sum(factor.abs().sum() for factor in factors)

        return loss

    def _training(self, lr: float, epochs: int) -> EditTraining:
        return EditTraining(lr=lr, batch_size=self.batch_size, epochs=epochs, decay="linear")

    def _scale(self, learned: Learned) -> float:
        """Return what the biases are multiplied with to have the length that was asked for."""
        if self.relative_norm is None:
            return 1.0
        shares = [float(v.norm()) / length for v, length in zip(learned.vectors, learned.lengths, strict=True)]
        return self.relative_norm / max(sum(shares) / len(shares), 1e-12)
