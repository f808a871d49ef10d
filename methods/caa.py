"""CAA, contrastive activation addition: add the difference of means between preferred and other replies.

Paper: Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition", ACL 2024, arXiv 2312.06681.

    v = mean_i [ h(x_i, chosen_i) - h(x_i, rejected_i) ],    h <- h + strength * v

at the output of one block, at the last prompt position and at every position after it. `pairs=choices` with
`pool=last_response` is the paper's form: both replies stand in the prompt as (A) and (B), and the state is that of the
letter; the preferred reply is A in every other pair, so that the letters cancel. By default the pairs are the task's
own replies; they can also be the model's own (`self_generated`) or a prompt under two personas (`personas`, with
`pool=last_prompt`). `relative_norm` gives the vector a length of its own, as the paper does to compare behaviours: that
share of the mean length of the states it was read from.

Differences from the authors' code (nrimsky/CAA): preference data have no answer letter, so the activation is read at
the last response token or averaged over the response (`pool`); their scope begins after the instruction and leaves the
first response token unsteered, ours includes the position it is drawn from. The vector is not normalised, as in the
paper.

Defaults: layer 13 of 32, or the same depth in other models; strength 1, in units of the vector's own length. Cost: one
forward pass per reply to fit, one addition per token to steer.

Pitfalls: over noisy pairs the vector is short, a hundredth of a state, so strengths do not carry over: tune
`relative_norm`. Its effect differs a lot between inputs, and some are steered the other way. Layer and pool matter more
than the strength: on the first testbed the difference at the last response token steers from the first two blocks and
not from the middle, and the mean over the response hardly steers at all.

Learns from: pairs. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.learn import Layer, PairSource, at_relative_norm, contrast, difference_of_means, middle_layer


@dataclass(frozen=True, kw_only=True)
class CAA(Steerer):
    """Difference of means over preference pairs.

    - `strength`: in units of the vector's own length
    - `relative_norm`: length of the shift as a share of the mean length of the states; None: as it comes
    - `layer`: block from 0, or a share of the depth such as 0.4; None: 13/32 of the depth
    - `pool`: where a reply is read: mean over it, its last token, or the last token of the prompt
    - `pairs`: where they come from: `preferences`, `choices`, `self_generated` or `personas`
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
    pool: Literal["response_mean", "last_response", "last_prompt"] = "response_mean"
    pairs: PairSource = "preferences"
    scope: Literal["all", "prompt", "response"] = "response"

    def fit(self, context: FitContext) -> Steering:
        """Average preferred minus other over the pairs."""
        site = Site("resid_post", middle_layer(context.lm, self.layer))
        states = contrast(context, site, self.pool, self.pairs)
        vector = at_relative_norm(difference_of_means(states), states, self.relative_norm)
        return Steering(edits=(PlacedEdit(site, Add(vector, self.strength), self.scope),))
