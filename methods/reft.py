"""ReFT: a low-rank edit of the prompt's states, learned from preferred replies.

Paper: Wu et al., "ReFT: Representation Finetuning for Language Models", NeurIPS 2024, arXiv 2404.03592: LoReFT.

    h <- h + strength * R' (W h + b - R h),    R with `rank` orthonormal rows
    min over R, W, b of the mean negative log-probability of the preferred replies' tokens

at the output of one block, at the first and the last `positions` tokens of the prompt; what is generated is not edited,
and feels it through the cache. `rank=1` is the form of rank one.

Differences from the authors' code (stanfordnlp/pyreft): one block by default, theirs all; R is made orthonormal by a QR
decomposition in each pass, theirs by torch's parametrisation, the same map; W begins as R and b at 0, where the edit
does nothing, theirs at random numbers; dropout is left out. One group of prompts in five is held out, and the best
epoch is kept. ReFT-r1 of AxBench, which gates one direction by its own activation, is another method.

Defaults: rank 4, first 7 and last 7 positions, lr 0.0009, warm-up over a tenth of the steps, then linear, as published;
two epochs, theirs 6 to 12; layer 15 of 32 or the same depth.

Cost: to fit, two epochs of forward and backward passes over the preferred reply of each pair. To steer, two products of
rank `rank` with the states of 14 prompt positions, and nothing per token.

On the testbed it does nothing good (0.05 nats per token, five seeds, 96 test prompts): -0.45 of gold on HH-RLHF (-0.94
to +0.03) and -0.10 on SHP (-0.75 to +0.55), at eleven to thirty-three times the edit that was learned, which itself
moves next to nothing: held out, the loss per token goes from 0.425 to 0.424. What it could imitate is what the
preferred replies have in common with the others, and the model writes that already. Tuned by the guide with eight
trials, which chose smaller edits, it gains +0.01 (-0.20 to +0.22) and +0.25 (+0.05 to +0.44), neither sure. A fit takes
40 s of CPU time.

Pitfalls: it imitates the preferred replies, and learns nothing from the others. It is fine-tuning: unfair beside
directions that are read off.

Learns from: pairs. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Edit, PerPosition, PlacedEdit, Site
from steerbench.learn import (
    Count,
    EditTraining,
    Layer,
    Positive,
    Range,
    Whole,
    block_at,
    contrast,
    imitation,
    leaf,
    train_edits,
)

DEPTH = 15 / 32


class LowRank(Edit):
    """h + strength * R' (W h + b - R h) at the first and last `positions` tokens of a prompt.

    `rotation` is (rank, width), of which R are the orthonormal rows with the same span; W is R + `change`, which is
    (rank, width); `bias` is (rank,).
    """

    def __init__(self, rotation: Tensor, change: Tensor, bias: Tensor, positions: int, strength: float = 1.0) -> None:
        super().__init__()
        if positions < 1:
            raise SteerbenchError(f"positions={positions} edits nothing; give 1 or more.")
        for name, tensor in {"rotation": rotation, "change": change, "bias": bias}.items():
            self.register_buffer(name, tensor)
        self.positions, self.strength = positions, strength

    def start(self, prompt: Tensor, mask: Tensor) -> PerPosition:
        """Return 1 at the edited positions, (batch, positions, 1)."""
        before, behind = mask.long().cumsum(1), mask.long().flip(1).cumsum(1).flip(1)
        edited = mask.bool() & ((before <= self.positions) | (behind <= self.positions))
        return PerPosition(edited[..., None].to(prompt.dtype))

    def rows(self) -> Tensor:
        """Return R, (rank, width)."""
        columns: Tensor = torch.linalg.qr(self.get_buffer("rotation").T)[0]
        return columns.T

    def forward(self, h: Tensor, state: Tensor) -> Tensor:
        """Edit the positions that the state marks."""
        added = (h @ self.get_buffer("change").T + self.get_buffer("bias")) @ self.rows()
        return h + self.strength * state * added


class Learned(NamedTuple):
    """The tensors of the edit, and what there is to say about their training."""

    rotation: Tensor
    change: Tensor
    bias: Tensor
    report: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReFT(Steerer):
    """A low-rank edit at the first and last tokens of the prompt.

    - `strength`: multiplies what the edit adds
    - `rank`: of the edit
    - `positions`: of the prompt, from its start and from its end
    - `layer`: block from 0, or a share of the depth such as 0.4; None: 15/32 of the depth
    - `lr`: learning rate of AdamW
    - `epochs`: at most; the best one is kept
    - `batch_size`: pairs in a step of training
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "strength": (0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
        "layer": (0.2, 0.4, 0.6, 0.8),
    }

    strength: float = 1.0
    rank: Annotated[int, Range(1, "width")] = 4
    positions: Count = 7
    layer: Layer | None = None
    lr: Positive = 9e-4
    epochs: Whole = 2
    batch_size: Count = 8

    def fit(self, context: FitContext) -> Steering:
        """Learn the edit, and describe it."""
        site = Site("resid_post", block_at(context.lm, DEPTH, self.layer))
        key = ("edit", context.seed, site, self.rank, self.positions, self.lr, self.epochs, self.batch_size)
        learned = context.once(key, lambda: self._learn(context, site))
        context.report.update(learned.report)
        edit = LowRank(*learned[:3], positions=self.positions, strength=self.strength)
        return Steering(edits=(PlacedEdit(site, edit, "prompt"),))

    def _learn(self, context: FitContext, site: Site) -> Learned:
        width = contrast(context, site, "response_mean").preferred.shape[1]
        if self.rank > width:
            raise SteerbenchError(f"rank={self.rank} is outside 1..{width}, the width of {site}.")
        drawn = torch.randn(self.rank, width, generator=context.generator("rotation"))
        first = (torch.linalg.qr(drawn.T)[0].T, torch.zeros(self.rank, width), torch.zeros(self.rank))
        rotation, change, bias = (leaf(context.lm, site, t) for t in first)
        edits = [PlacedEdit(site, LowRank(rotation, change, bias, self.positions), "prompt")]
        training = EditTraining(lr=self.lr, batch_size=self.batch_size, epochs=self.epochs, warmup=0.1, decay="linear")
        found = train_edits(context, edits, imitation, training)
        return Learned(rotation.cpu(), change.cpu(), bias.cpu(), found.report())
