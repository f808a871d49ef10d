"""The control without labels: CAA over pairs of which a random half has its two sides swapped.

A method that does no better than this steers by what its states vary in anyway, and not by which reply is preferred. A
random direction is the weaker control: it has little to do with the states of the model.

    v = mean_i [ e_i (h(x_i, chosen_i) - h(x_i, rejected_i)) ],    e_i = 1 for a random half of the pairs, else -1

scaled to the length of the CAA vector at the same layer, pool and relative norm, and added as there. Exactly half of
the pairs are swapped, and of an odd number one is left out: signs drawn one by one would leave some of the mean
difference, which the scaling would blow up again.

Defaults: as CAA, and so is what tuning draws from. Cost: as CAA.

Pitfalls: without labels it may still point where CAA does, up to its sign, where the states vary most in that very
direction: with 64 pairs of the testbed's HH-RLHF the cosine of the two is within 0.22 over the mean of the reply, and
0.7 at its last token in the upper two of five layers. One half is one draw; the spread over seeds belongs to the
result. Where all pairs differ alike the vector is noise at the length of a signal, and of a single pair nothing is
left.

Learns from: pairs (without which of the two is preferred). Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch.nn.functional import normalize

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.learn import Layer, at_relative_norm, contrast, difference_of_means, middle_layer


@dataclass(frozen=True, kw_only=True)
class ShuffledLabels(Steerer):
    """Difference of means over pairs of which half are swapped.

    - `strength`: in units of the length of the difference of means
    - `relative_norm`: length of the shift as a share of the mean length of the states; None: as it comes
    - `layer`: block from 0, or a share of the depth such as 0.4; None: 13/32 of the depth
    - `pool`: where a reply is read: mean over it or its last token
    - `scope`: positions that are edited
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "relative_norm": (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6),
        "layer": (0.0, 0.2, 0.4, 0.6, 0.8),
        "pool": ("response_mean", "last_response"),
    }

    strength: float = 1.0
    relative_norm: float | None = None
    layer: Layer | None = None
    pool: Literal["response_mean", "last_response"] = "response_mean"
    scope: Literal["all", "prompt", "response"] = "response"

    def fit(self, context: FitContext) -> Steering:
        """Swap half of the pairs and average."""
        site = Site("resid_post", middle_layer(context.lm, self.layer))
        states = contrast(context, site, self.pool)
        half = len(states.preferred) // 2
        order = torch.randperm(len(states.preferred), generator=context.generator("shuffled_labels"))
        one, other = (states.differences[rows].mean(0) for rows in (order[:half], order[half : 2 * half]))
        length = at_relative_norm(difference_of_means(states), states, self.relative_norm).norm()
        vector = normalize(one - other, dim=0) * length if half else torch.zeros_like(states.preferred[0])
        return Steering(edits=(PlacedEdit(site, Add(vector, self.strength), self.scope),))
