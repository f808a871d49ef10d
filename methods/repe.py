"""RepE reading vectors: add the principal direction of pair differences in a band of layers.

Paper: Zou et al., "Representation Engineering: A Top-Down Approach to AI Transparency", arXiv 2310.01405: linear
artificial tomography (LAT) for reading, linear combination for control.

    v_l = first right singular vector of D_l, rows h(good_i) - h(bad_i),    mean(D_l v_l) >= 0
    h_l <- h_l + strength * coefficient * v_l

at the output of every block of the band and at all positions; v_l is a unit vector. The pairs are one prompt under two
personas, read at its last token, as in the paper's templates; `pairs` and `pool` choose others.

The PCA trap: a PCA subtracts the mean, and the mean of the differences is what is looked for. The paper's code swaps
the order inside each pair at random, so that the mean vanishes and the direction becomes the first axis; libraries that
leave the swap out find whatever else varies. The singular vectors of the differences, not centred, give that axis
without chance, and the sign comes from the labels. Where other variation exceeds the signal every PCA fails, and the
difference of means does not: the record has their cosine for each layer.

Differences from the authors' code (andyzoujm/representation-engineering @5455d8a): no random swap, see above; the sign
from the mean difference instead of a vote of training pairs; no piecewise or projection operator.

Defaults: coefficient 4, in units of the state, as in the notebooks for 13B models; layers 10 to 14 of 32 (-22 to -18 in
those for 7B), or the same depth in other models; strength 1 multiplies the coefficient. `relative_norm` replaces the
coefficient by that share of the mean length of the states, layer by layer. Cost: one forward pass per prompt, persona
and layer to fit, one addition per token and layer to steer.

Pitfalls: the coefficient has no unit across models: tune `relative_norm`. Shifts of several layers add up in the
residual stream. `personas` differ also in their wording (`You are` against `Pretend you are`).

Learns from: prompts (under two personas). Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch.nn.functional import cosine_similarity

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.learn import PairSource, at_relative_norm, contrasts, difference_of_means, principal_difference


@dataclass(frozen=True, kw_only=True)
class RepE(Steerer):
    """The principal direction of pair differences, in several layers.

    - `strength`: multiplies the shift
    - `coefficient`: length of the shift, in units of the state
    - `relative_norm`: replaces the coefficient: length as a share of the mean length of the states
    - `first_layer`: of the band, from 0; None: 10/32 of the depth
    - `last_layer`: of the band; None: 14/32 of the depth
    - `pairs`: where they come from: `preferences`, `choices`, `self_generated` or `personas`
    - `pool`: where a reply is read: mean over it, its last token, or the last token of the prompt
    - `scope`: positions that are edited
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"relative_norm": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)}

    strength: float = 1.0
    coefficient: float = 4.0
    relative_norm: float | None = None
    first_layer: int | None = None
    last_layer: int | None = None
    pairs: PairSource = "personas"
    pool: Literal["last_prompt", "last_response", "response_mean"] = "last_prompt"
    scope: Literal["all", "prompt", "response"] = "all"

    def fit(self, context: FitContext) -> Steering:
        """Find an axis and its sign in each layer of the band."""
        edits, cosines = [], {}
        band = [Site("resid_post", layer) for layer in self._band(context.lm.n_layers)]
        for site, states in contrasts(context, band, self.pool, self.pairs).items():
            axis = principal_difference(states)
            cosines[str(site.layer)] = float(cosine_similarity(axis, difference_of_means(states), dim=0))
            relative = self.relative_norm is not None
            vector = at_relative_norm(axis, states, self.relative_norm) if relative else self.coefficient * axis
            edits.append(PlacedEdit(site, Add(vector, self.strength), self.scope))
        context.report.update(cosine_with_difference_of_means=cosines)
        return Steering(edits=tuple(edits))

    def _band(self, depth: int) -> range:
        first = round(depth * 10 / 32) if self.first_layer is None else self.first_layer
        last = round(depth * 14 / 32) if self.last_layer is None else self.last_layer
        if not 0 <= first <= last < depth:
            raise SteerbenchError(f"repe: layers {first} to {last} are no band of 0..{depth - 1}; set both.")
        return range(first, last + 1)
