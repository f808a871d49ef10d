"""Directional ablation: take the undesired direction out of everything that is written to the residual stream.

Paper: Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction", arXiv 2406.11717; the affine form
is that of "Refusal in LLMs is an Affine Function" (ACE), arXiv 2411.09003.

    r = mean(other) - mean(preferred) at one layer, as a unit vector
    form=directional   h <- h - r r'h, at the input of every block and at the output of its attention and its MLP
    form=affine        h <- h - r r'h + r r'mu, at that layer alone: mu is the mean of the preferred states

at all positions. Where a block adds what attention and MLP put out, the first form equals orthogonalising every weight
that writes to the stream. Zero is no neutral value for a component; the affine form moves it to where the preferred
states have it, and `push` moves it on, in units of the distance between the two means.

Differences from the authors' code (andyrdt/refusal_direction @9d852fa): the direction is that of preferred and other
replies and not of harmful and harmless prompts, read at `pool`; the layer is given, not selected by refusal scores
under a bound on the KL divergence; `strength` grades the edit. For ACE: one layer.

Defaults: layer 13 of 32, or the same depth in other models; strength 1, the whole projection; push 0. Cost: one forward
pass per reply to fit; per token a product and an addition at each site, three per layer. A block without an attention
or without a feed-forward part has fewer; the fit's report says which have one. What its mixer writes is taken out at
the input of the next block.

Pitfalls: one direction taken out of every layer is a strong edit where the direction drifts with depth. Directional
ablation does not know the sign: it removes what is preferred about a state with the rest. Models that scale what a
block adds (Gemma 2) write the direction again between attention and MLP.

Learns from: pairs. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch.nn.functional import normalize

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Ablate, PlacedEdit, Site
from steerbench.learn import Layer, PairSource, contrast, difference_of_means, middle_layer


@dataclass(frozen=True, kw_only=True)
class Ablation(Steerer):
    """Removes the component along the direction of the other replies.

    - `strength`: share of the projection that is taken out
    - `form`: at every site that writes to the stream, or at one layer toward the mean of the preferred states
    - `push`: with `form=affine`, how far beyond that mean, in units of the distance between the two means
    - `layer`: block from 0, or a share of the depth such as 0.4; None: 13/32 of the depth
    - `pool`: where a reply is read: mean over it, its last token, or the last token of the prompt
    - `pairs`: where they come from: `preferences`, `choices`, `self_generated` or `personas`
    - `scope`: positions that are edited
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "strength": (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
        "layer": (0.0, 0.2, 0.4, 0.6, 0.8),
        "pool": ("response_mean", "last_response"),
    }

    strength: float = 1.0
    form: Literal["directional", "affine"] = "directional"
    push: float = 0.0
    layer: Layer | None = None
    pool: Literal["response_mean", "last_response", "last_prompt"] = "response_mean"
    pairs: PairSource = "preferences"
    scope: Literal["all", "prompt", "response"] = "all"

    def fit(self, context: FitContext) -> Steering:
        """Find the direction at one layer and place its removal."""
        source = Site("resid_post", middle_layer(context.lm, self.layer))
        states = contrast(context, source, self.pool, self.pairs)
        shift = -difference_of_means(states)
        direction = normalize(shift, dim=0)
        if self.form == "affine":
            target = float(states.preferred.mean(0) @ direction - self.push * shift.norm())
            return Steering(edits=(PlacedEdit(source, Ablate(direction, target, self.strength), self.scope),))
        sites = sorted((site for name in _WRITES for site in context.sites(name)), key=_in_order)
        return Steering(edits=tuple(PlacedEdit(s, Ablate(direction, 0.0, self.strength), self.scope) for s in sites))


_WRITES: tuple[Literal["resid_pre", "attn_out", "mlp_out"], ...] = ("resid_pre", "attn_out", "mlp_out")


def _in_order(site: Site) -> tuple[int, int]:
    return site.layer or 0, [*_WRITES].index(site.name)  # type: ignore[arg-type]
