"""RepE reading vectors: add the principal direction of pair differences in a band of layers.

Paper: Zou et al., "Representation Engineering: A Top-Down Approach to AI Transparency", arXiv 2310.01405: linear
artificial tomography (LAT) for reading, linear combination for control.

    v_l = first principal component of D_l, rows e_i (h(good_i) - h(bad_i)), e_i = 1 or -1 at random; turned so that
          mean(h(good_i) - h(bad_i)) v_l >= 0
    h_l <- h_l + strength * relative_norm * |h_l| * v_l        (|h_l|: mean length of the states it was found in)

at the output of every block of the band and at all positions; v_l is a unit vector. The pairs are one prompt under two
personas, read at its last token, as in the paper's templates; `pairs` and `pool` choose others.

The PCA trap: a PCA subtracts the mean, and the mean of the differences is what is looked for. As in the paper's code
the order inside each pair is swapped at random, so that the mean vanishes and the direction becomes the first axis;
libraries that leave the swap out find whatever else varies. `swapped=false` takes the singular vectors of the
differences, not centred, which give that axis without chance. Where other variation exceeds the signal every PCA fails,
and the difference of means does not: the record has their cosine for each layer.

What it is, measured on the first testbed with 64 prompts of HH-RLHF: under personas, whose prompts differ in the same
words every time, the direction is the difference of means (cosine 0.999 to 1.000 in all five layers, swapped or not),
so that this is CAA in a band of layers. On pairs of replies it is another one: cosine 0.07 to 0.91 at their last token,
0.08 to 0.88 over their mean, the lowest in the first two blocks.

Differences from the authors' code (andyzoujm/representation-engineering @5455d8a): the sign from the mean difference
instead of a vote of training pairs; no piecewise or projection operator.

Defaults: `relative_norm` 0.1, ours, for the published coefficient has no unit across models: 4, in units of the state,
in the notebooks for 13B models, which `relative_norm=none` gives back. Layers 10 to 14 of 32 (-22 to -18 in those for
7B), or the same depth in other models. Tuning moves the whole band. Cost: one forward pass per prompt, persona
and layer to fit, one addition per token and layer to steer.

Pitfalls: with fewer than ten pairs the swap is seldom even, and the axis suffers. Shifts of several layers add up in
the residual stream. `personas` differ also in their wording (`You are` against `Pretend you are`).

Learns from: prompts (under two personas). Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from steerbench import FitContext, LanguageModel, SteerbenchError, Steerer, Steering
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.learn import (
    Contrast,
    Layer,
    PairSource,
    Range,
    at_relative_norm,
    block_at,
    contrasts,
    difference_of_means,
    principal_difference,
    singular_directions,
    toward_preferred,
)


@dataclass(frozen=True, kw_only=True)
class RepE(Steerer):
    """The principal direction of pair differences, in several layers.

    - `strength`: multiplies the shift
    - `relative_norm`: length of the shift as a share of the mean length of the states, layer by layer
    - `coefficient`: with `relative_norm=none`, length of the shift in units of the state, as published
    - `swapped`: whether the order inside each pair is drawn and a PCA subtracts the mean, as published
    - `first_layer`: of the band, from 0, or a share of the depth such as 0.4; None: 10/32 of the depth
    - `last_layer`: of the band; None: 4/32 of the depth above the first
    - `pairs`: where they come from: `preferences`, `choices`, `self_generated` or `personas`
    - `pool`: where a reply is read: mean over it, its last token, or the last token of the prompt
    - `scope`: positions that are edited
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "relative_norm": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
        "first_layer": (0.0, 0.2, 0.4, 0.6, 0.8),
    }

    strength: float = 1.0
    relative_norm: float | None = 0.1
    coefficient: float = 4.0
    swapped: bool = True
    first_layer: Layer | None = None
    last_layer: Annotated[int, Range(0, "last_layer")] | None = None
    pairs: PairSource = "personas"
    pool: Literal["last_prompt", "last_response", "response_mean"] = "last_prompt"
    scope: Literal["all", "prompt", "response"] = "all"

    def fit(self, context: FitContext) -> Steering:
        """Find an axis and its sign in each layer of the band."""
        edits, cosines = [], {}
        band = [Site("resid_post", layer) for layer in self._band(context.lm)]
        for site, states in contrasts(context, band, self.pool, self.pairs).items():
            axis = self._axis(context, site, states)
            cosines[str(site.layer)] = float(cosine_similarity(axis, difference_of_means(states), dim=0))
            relative = self.relative_norm is not None
            vector = at_relative_norm(axis, states, self.relative_norm) if relative else self.coefficient * axis
            edits.append(PlacedEdit(site, Add(vector, self.strength), self.scope))
        context.report.update(cosine_with_difference_of_means=cosines)
        return Steering(edits=tuple(edits))

    def _axis(self, context: FitContext, site: Site, states: Contrast) -> Tensor:
        """Return the first principal component of the differences, (width,), toward the preferred side."""
        if not self.swapped:
            return principal_difference(states)
        order = torch.randint(2, (len(states.preferred), 1), generator=context.generator("repe", site.layer))
        rows = states.differences * (2 * order - 1)
        return toward_preferred(singular_directions(rows - rows.mean(0), 0.0), states)[0]

    def _band(self, lm: LanguageModel) -> range:
        depth, given = lm.n_layers, self.first_layer
        first = given if isinstance(given, int) else block_at(lm, 10 / 32, given)
        start = given if isinstance(given, int) else depth * (10 / 32 if given is None else given)
        last = min(round(start + depth * 4 / 32), depth - 1) if self.last_layer is None else self.last_layer
        if not 0 <= first <= last < depth:
            raise SteerbenchError(f"repe: layers {first} to {last} are no band of 0..{depth - 1}; set both.")
        return range(first, last + 1)
