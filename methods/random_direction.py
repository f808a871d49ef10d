"""The control: a random direction, as long as the difference of means would be.

A method that does no better than this moves the model, but not where it claims. The direction is drawn from a normal
distribution and scaled to the length of the CAA vector at the same layer, pool and relative norm.

Defaults: as CAA, and so is what tuning draws from. Cost: as CAA.

Pitfalls: one direction is one draw; the spread over seeds belongs to the result.

Learns from: pairs (the length of their difference alone). Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.learn import Layer, at_relative_norm, contrast, difference_of_means, middle_layer


@dataclass(frozen=True, kw_only=True)
class RandomDirection(Steerer):
    """A random direction of the norm of the difference of means.

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
        """Draw a direction and give it the length of chosen minus rejected."""
        site = Site("resid_post", middle_layer(context.lm, self.layer))
        states = contrast(context, site, self.pool)
        mean_shift = at_relative_norm(difference_of_means(states), states, self.relative_norm)
        direction = torch.randn(len(mean_shift), generator=context.generator("random_direction"))
        vector = direction / direction.norm() * mean_shift.norm()
        return Steering(edits=(PlacedEdit(site, Add(vector, self.strength), self.scope),))
