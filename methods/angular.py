"""Angular steering: turn states, in the plane of a direction and of its change over the layers, to one angle.

Paper: Vu and Nguyen, "Angular Steering: Behavior Control via Rotation in Activation Space", arXiv 2510.26243.

    d_l = unit(mean(preferred) - mean(other)) at block l;   b1 = d at one layer
    b2 = the first principal component of all d_l, made orthogonal to b1
    h <- h - P h + |P h| (cos(angle) b1 + sin(angle) b2),    P: the projector on the plane of b1 and b2

At 0 degrees all of the component in the plane points to preferred replies, at 180 away from them. The length of a state
does not change. `one_sided` turns only states that lean to b1, the paper's adaptive form.

Differences from the authors' code (lone17/angular-steering @8da12d4): the output of the block of b1, or of that and all
behind it, where theirs turns what both norms of every block put out: there is no such site here; preferred and other
replies instead of harmful and harmless prompts; the layer of b1 is given, not chosen by its length; `strength` is ours,
the share of the way to the angle, on the chord.

Defaults: 0 degrees, half of the way, b1 from 13/32 of the depth, that block alone. Cost: a pass per reply to fit; two
products with two rows for each token and layer.

Pitfalls: every token gets the same angle, so that what varied in the plane is lost. b2 is nearly arbitrary: two seeds
give two curves over the angle. Degrees are no unit that other methods share; compare at equal KL.

On the testbed it gains +0.32 of gold on HH-RLHF (+0.10 to +0.55) and +0.11 on SHP (-0.11 to +0.34) at 0.05 nats per
token (five seeds, 96 test prompts), neither sure; tuned by the guide with eight trials, +0.15 (-0.07 to +0.38) and
+0.12 (-0.06 to +0.29). Its direction is that of `caa`, which gains +0.50 and +0.36.

Learns from: pairs. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import PlacedEdit, Rotate, Site
from steerbench.learn import Layer, contrasts, difference_of_means, middle_layer, singular_directions


@dataclass(frozen=True, kw_only=True)
class Angular(Steerer):
    """Rotation in a plane.

    - `angle`: in degrees from the direction of preferred replies
    - `strength`: share of the way to it
    - `one_sided`: whether only states that lean to preferred replies are turned
    - `layers`: which are turned: the one of b1, or that and all behind it, as published
    - `layer`: of b1: block from 0, or a share of the depth such as 0.4; None: 13/32 of the depth
    - `pool`: where a reply is read: mean over it, or its last token
    - `scope`: positions that are edited
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "angle": (0.0, 30.0, 60.0, 90.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0, 330.0),
        "strength": (0.25, 0.5, 0.75, 1.0),
        "layer": (0.0, 0.2, 0.4, 0.6, 0.8),
        "pool": ("response_mean", "last_response"),
    }

    angle: float = 0.0
    strength: float = 0.5
    one_sided: bool = False
    layers: Literal["one", "from_there"] = "one"
    layer: Layer | None = None
    pool: Literal["response_mean", "last_response"] = "response_mean"
    scope: Literal["all", "prompt", "response"] = "all"

    def fit(self, context: FitContext) -> Steering:
        """Find the plane, and turn states in it."""
        first = middle_layer(context.lm, self.layer)
        plane = self._plane(context, first)
        turned = range(first, context.lm.n_layers) if self.layers == "from_there" else [first]
        edit = Rotate(plane, self.angle, self.strength, self.one_sided)
        return Steering(edits=tuple(PlacedEdit(Site("resid_post", layer), edit, self.scope) for layer in turned))

    def _plane(self, context: FitContext, first: int) -> Tensor:
        """Return b1 and b2, (2, width)."""
        found = contrasts(context, context.sites("resid_post"), self.pool)
        directions = {site.layer: normalize(difference_of_means(states), dim=0) for site, states in found.items()}
        rows = torch.stack(list(directions.values()))
        b1 = directions[first]
        axis = singular_directions(rows - rows.mean(0), 0.0)[0]
        across = axis - (axis @ b1) * b1
        if float(across.norm()) < 1e-3:
            raise SteerbenchError("angular: all layers have one direction, which spans no plane; a deeper model has.")
        b2 = normalize(across, dim=0)
        leaning = rows.mean(0) @ b2
        return torch.stack([b1, -b2 if leaning < 0 else b2])
