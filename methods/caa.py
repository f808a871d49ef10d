"""CAA, contrastive activation addition: add the difference of means between preferred and other replies.

Paper: Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition", ACL 2024, arXiv 2312.06681.

    v = mean_i [ h(x_i, chosen_i) - h(x_i, rejected_i) ],    h <- h + strength * v

at the output of one block, at the last prompt position and at every position after it.

Differences from the authors' code (nrimsky/CAA): preference data have no answer letter, so the activation is read at
the last response token or averaged over the response (`pool`); their scope begins after the instruction and leaves the
first response token unsteered, ours includes the position it is drawn from. The vector is not normalised, as in the
paper.

Defaults: layer 13 of 32, or the same depth in other models; strength 1, in units of the vector's own length. Cost: one
forward pass per reply to fit, one addition per token to steer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from steerbench import (
    Add,
    FitContext,
    PlacedEdit,
    Site,
    Steerer,
    Steering,
    contrast,
    difference_of_means,
    middle_layer,
)


@dataclass(frozen=True, kw_only=True)
class CAA(Steerer):
    """Difference of means over preference pairs."""

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"strength": (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)}

    strength: float = 1.0
    layer: int | None = None
    pool: Literal["response_mean", "last_response"] = "response_mean"
    scope: Literal["all", "prompt", "response"] = "response"

    def fit(self, context: FitContext) -> Steering:
        """Average chosen minus rejected over the train split."""
        site = Site("resid_post", middle_layer(context.lm, self.layer))
        vector = difference_of_means(contrast(context, site, self.pool))
        return Steering(edits=(PlacedEdit(site, Add(vector, self.strength), self.scope),))
