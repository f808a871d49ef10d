"""ITI, inference-time intervention: shift the attention heads that best tell preferred from other replies.

Paper: Li et al., "Inference-Time Intervention: Eliciting Truthful Answers from a Language Model", NeurIPS 2023, arXiv
2306.03341.

    theta = mean(z of preferred) - mean(z of other), at unit length;    sigma = standard deviation of z · theta
    z <- z + strength * alpha * sigma * theta

for each of the `n_heads` chosen heads; z is the head's slice of the input of the attention's output projection.

What is implemented: a logistic probe per head is trained on four fifths of the pairs, and the heads are ranked by its
accuracy on the others, equals by layer and head. With fewer than five groups of prompts all pairs do both. Theta and
sigma are of all pairs; `direction=probe` takes the probe's coefficients as theta. Under grouped-query attention the
heads are the query heads; their number and width may differ between layers. Blocks without an attention are left out:
`layers_with_z` of the fit's report says which have one. `scope=response` steers the last prompt position and each new
one, as published; `all` steers every position, which is a constant bias W_o v of the output projection, and the engine
runs it as one.

Differences from the authors' code (likenneth/honest_llama @2c6b217):
- preferred and other replies of the task stand for true and false answers to TruthfulQA's questions, and there are no
  folds: the bench keeps test prompts away. As theirs by question, the split is by prompt and group of the example;
- sigma is taken over both sides of the pairs; theirs over a text set of its own (`tqa_gen_end_q`);
- every row of a batch is edited, in float32; theirs edits row 0 in half precision. Scoring a given response steers all
  of its positions, as decoding does; theirs the last position of the pass;
- their flag for the mean difference is off by default; here it is the default, being the better one in the paper.

Defaults: alpha 15, in standard deviations along theta, and as published for a 7B model 48 of 1,024 heads: that share,
0.047, of the heads of any model, one at least; a count such as `n_heads=48` asks for a model with as many.
`relative_norm` replaces alpha: the shift of a layer, all its
heads together, is then that share of the mean length of z, on average over the layers. `strength` 1 multiplies either.
`pairs=personas` has no replies and needs `pool=last_prompt`.

Cost: to fit, each of the L layers is read in a pass of its own that ends there, (L + 1) / 2 forward passes per reply,
and kept in memory for other methods: 2 GB for 2,000 pairs on a 7B model. A probe takes about 10 ms for 4,000 rows. To
steer, one addition per chosen layer and token, or with `scope=all` nothing.

On the first testbed, of 40 heads, that makes two; with 64 pairs of HH-RLHF their probes are right in 0.63 to 0.79 of
the pairs held out, and three seeds choose six heads of which one is there twice. Alpha 15 still breaks replies there
(KL 1.1, gold -1.6 on 64 prompts). Tuning tries shares of heads up to 0.8, and in place of alpha `relative_norm` from
0.05: with that, four replies of four were those of the unsteered model (64 pairs, seed 0).

Pitfalls: alpha does not carry over between models; tune `relative_norm`. Probes are content with format: replies that
differ in style or in their last mark are told apart by that. The best heads crowd in few layers, so that shifts add up.
Results of the published pyvene code at a batch size above 1 are mostly of unsteered rows. "ITI" means other things in
other suites: a probe on the residual stream, or sigma and scope of another kind.

Learns from: pairs. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.learn import Contrast, Heads, PairSource, contrasts, difference_of_means
from steerbench.learn.pairs import pairs_from
from steerbench.learn.probes import Probe, by_head, hold_out, logistic_probe


class Head(NamedTuple):
    """A head, how well its two sides are told apart, and its shift at strength 1."""

    layer: int
    head: int
    probe: Probe
    shift: Tensor
    """sigma * theta, (d_head,)."""


@dataclass(frozen=True, kw_only=True)
class ITI(Steerer):
    """Mean differences at the attention heads whose probes are most accurate.

    - `strength`: multiplies the shift
    - `alpha`: length of the shift of a head, in standard deviations along its direction
    - `relative_norm`: replaces alpha: length of the shift of a layer as a share of the mean length of z
    - `n_heads`: heads that are steered, or a share of them below 1
    - `direction`: the difference of means, or the coefficients of the probe
    - `pairs`: where they come from: `preferences`, `choices`, `self_generated` or `personas`
    - `pool`: where a reply is read: mean over it, its last token, or the last token of the prompt
    - `scope`: positions that are edited
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "relative_norm": (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6),
        "n_heads": (0.025, 0.05, 0.1, 0.2, 0.4, 0.8),
    }

    strength: float = 1.0
    alpha: float = 15.0
    relative_norm: float | None = None
    n_heads: Heads = 0.046875
    direction: Literal["mass_mean", "probe"] = "mass_mean"
    pairs: PairSource = "preferences"
    pool: Literal["last_response", "response_mean", "last_prompt"] = "last_response"
    scope: Literal["response", "all"] = "response"

    def fit(self, context: FitContext) -> Steering:
        """Probe all heads, and describe a shift of the best."""
        held_out = hold_out(context, pairs_from(context, self.pairs))
        key = ("heads", self.pairs, self.pool, self.direction, context.seed)
        heads = context.once(key, lambda: self._heads(context, held_out))
        count = max(1, round(self.n_heads * len(heads))) if isinstance(self.n_heads, float) else self.n_heads
        chosen = sorted(heads, key=lambda h: (-h.probe.accuracy, h.layer, h.head))[:count]
        n_held_out = int(held_out.sum())
        context.report.update(
            heads=[[h.layer, h.head, h.probe.accuracy] for h in chosen],
            heads_of_model=len(heads),
            pairs={"train": len(held_out) - n_held_out, "validation": n_held_out or len(held_out)},
            sigma_from=f"{self.pool} of both sides of all pairs ({self.pairs})",
            probes_not_converged=sum(not h.probe.converged for h in heads),
        )
        return Steering(edits=self._edits(context, heads, chosen))

    def _heads(self, context: FitContext, held_out: Tensor) -> list[Head]:
        """Probe every head of every layer; `held_out` is (pairs,)."""
        heads = []
        for site, sides in contrasts(context, context.sites("z"), self.pool, self.pairs).items():
            layer = site.layer or 0
            each = by_head(context.lm, layer, sides)
            with context.progress(f"probes {site}", len(each)) as advance:
                for head, one in enumerate(each):
                    probe = logistic_probe(one, held_out)
                    heads.append(Head(layer, head, probe, self._shift(one, probe)))
                    advance(1)
        return heads

    def _shift(self, sides: Contrast, probe: Probe) -> Tensor:
        """Return sigma * theta of one head, (d_head,)."""
        toward = difference_of_means(sides) if self.direction == "mass_mean" else probe.coefficients
        theta = normalize(toward, dim=0)  # 0 stays 0: equal means tell no direction
        return theta * (torch.cat(sides) @ theta).std(correction=0)

    def _edits(self, context: FitContext, heads: Sequence[Head], chosen: Sequence[Head]) -> tuple[PlacedEdit, ...]:
        """Return one edit for each layer with a chosen head; its vector is zero at the other heads."""
        steered = {(h.layer, h.head) for h in chosen}
        shifts: dict[int, list[Tensor]] = {layer: [] for layer in sorted({h.layer for h in chosen})}
        for h in heads:
            if h.layer in shifts:
                shifts[h.layer].append(h.shift if (h.layer, h.head) in steered else torch.zeros_like(h.shift))
        vectors = {Site("z", layer): torch.cat(parts) for layer, parts in shifts.items()}
        alpha = self.alpha if self.relative_norm is None else self.relative_norm / self._share(context, vectors)
        context.report["alpha"] = alpha
        return tuple(PlacedEdit(site, Add(alpha * v, self.strength), self.scope) for site, v in vectors.items())

    def _share(self, context: FitContext, vectors: Mapping[Site, Tensor]) -> float:
        """Return the mean over layers of the length of the shift beside the mean length of z."""
        read = contrasts(context, list(vectors), self.pool, self.pairs)
        states = {site: torch.cat(sides) for site, sides in read.items()}
        shares = [float(v.norm() / states[site].norm(dim=1).mean()) for site, v in vectors.items()]
        return max(sum(shares) / len(shares), 1e-12)
