"""Static representation editing: shift every state along the direction in which a linear regression sees more reward.

Paper: the baseline "Static RE" of Kong et al. 2024, arXiv 2406.05954: a linear regression predicts the expected reward
from the hidden state after the prompt, and the activation space is shifted by a fixed multiple of its weight vector
during the whole generation, as in ITI (Li et al. 2023).

    reward ~ w · h + c,    h <- h + strength * |h| / |w| * w     (|h|: mean length of the states of the regression)

Differences from the authors' code: there is none to compare with, and no settings are published. The regression here is
ridge regression with its penalty chosen by leave-one-out cross-validation (scikit-learn): there are rarely more
rollouts than dimensions. At `site=final` the shift is a constant logit bias; `resid_post` reaches the layers above,
where `layer` is 13 of 32 by default, as for `caa`. Tuning does not draw the layer: at `final` there is none, and half
of the trials would be others again; give it with `site=resid_post`, such as `layer=0.4`. `pool=response_mean` regresses
on the response instead of the prompt.

Defaults: strength 0.1, in units of the mean length of a state; the paper's is not known. Cost: one response to each
training prompt and one pass over it to fit, one addition per token to steer.

Pitfalls: the direction is what the reward model likes, faults included: tuned by the guide on the first testbed's
HH-RLHF it wins 1.1 of reward and 0.8 of held-out reward, and loses 1.9 of gold. At `final` it is a taste for tokens,
whatever the prompt.

Learns from: rollouts with rewards. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from sklearn.linear_model import RidgeCV

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.learn import Layer, middle_layer

PENALTIES = [10.0**k for k in range(-3, 6)]
"""Of states in units of their standard deviation."""


@dataclass(frozen=True, kw_only=True)
class StaticRE(Steerer):
    """A fixed shift along the weights of a regression of the reward on the state.

    - `strength`: length of the shift, in units of the mean length of a state
    - `site`: where it acts
    - `layer`: with `site=resid_post`, block from 0, or a share of the depth such as 0.4; None: 13/32 of the depth
    - `pool`: where the states of the regression are read
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "strength": (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2),
        "site": ("final", "resid_post"),
        "pool": ("last_prompt", "response_mean"),
    }

    strength: float = 0.1
    site: Literal["final", "resid_post"] = "final"
    layer: Layer | None = None
    pool: Literal["last_prompt", "response_mean"] = "last_prompt"

    def fit(self, context: FitContext) -> Steering:
        """Regress the reward of rollouts on their pooled states."""
        site = Site("final") if self.site == "final" else Site("resid_post", middle_layer(context.lm, self.layer))
        rollouts = [r for r in context.rollouts() if r.tokens.response]
        if len(rollouts) < 2:
            raise SteerbenchError("a regression needs two rollouts with a token at least; raise --n-train.")
        states = torch.stack(context.activations(site, [r.tokens for r in rollouts], self.pool))
        rewards = [r.reward for r in rollouts]
        ridge = RidgeCV(PENALTIES).fit((states / states.std()).double().numpy(), rewards)
        weights = torch.from_numpy(ridge.coef_).float()
        unit = torch.nn.functional.normalize(weights, dim=0)  # 0 stays 0: equal rewards tell no direction
        context.report.update(rollouts=len(rollouts), penalty=float(ridge.alpha_))
        return Steering(edits=(PlacedEdit(site, Add(unit * states.norm(dim=1).mean(), self.strength)),))
