"""ODESteer: follow the direction in which a quadratic classifier tells preferred from other states, step by step.

Paper: "ODESteer", ICLR 2026, arXiv 2602.17560: steering as an ordinary differential equation.

    f(h) = log-odds of preferred against other states: logistic regression on products of two components of h / |h|
    dh/dt = grad f(h) / |grad f(h)|,  from 0 to `time`, in `n_steps` Euler steps

at the output of one block, at the last prompt position and every position after it. `time` is the length of the way in
units of the state. f is a quadratic form, so its gradient is one product of the state with a matrix.

Differences from the authors' code (ZhaoHongjue/odesteer @228d2ee): the features are the same polynomial count sketch
(degree 2, gamma 0.1, constant 1), and f, being quadratic whatever the sketch, is kept as a matrix, not as a sketch.
States are those of replies to preference pairs (`pool`). Their decoding with a repetition penalty is left out.

Defaults: 5 units of way in 10 steps, layer 13 of 32 or the same depth, 8,000 features; penalty of the regression
scikit-learn's, C = 1. `relative_norm` replaces `time` by a share of the mean length of the states, which carries over.

Cost: one forward pass per reply and a logistic regression to fit, 16 s of CPU time on the testbed. Per token `n_steps`
products of the state with a width x width matrix.

On the testbed it gains +0.37 of gold on HH-RLHF and, surely, +0.47 on SHP (0.05 nats per token, five seeds, 96 test
prompts), about what `caa` gains from the same pairs, at 1.3 times the time of the unsteered model; tuned by the guide
with eight trials +0.65 (+0.37 to +0.93) and, surely, +0.40. With unit states and
this gamma the features are so small that the penalty leaves little but the difference of their means. On the first
testbed, whose states were 810 long, the published 5 units of way did nothing.

Pitfalls: `time` does not carry over between models. The classifier is content with format, as every probe is, and far
from the states it knows its gradient says nothing.

Learns from: pairs. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from sklearn.kernel_approximation import PolynomialCountSketch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import normalize

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Edit, PlacedEdit, Site
from steerbench.learn import Contrast, Count, Layer, NotNegative, contrast, middle_layer

GAMMA = 0.1


class Flow(Edit):
    """h after `n_steps` steps of length `time / n_steps` along the gradient of x' form x + linear' x, x = h / |h|.

    `form` is (width, width) and symmetric, `linear` (width,); `time` is in units of the state.
    """

    def __init__(self, form: Tensor, linear: Tensor, time: float, n_steps: int) -> None:
        super().__init__()
        if n_steps < 1 or time < 0:
            raise SteerbenchError(f"time={time} in n_steps={n_steps}: give a time of 0 or more, and 1 step or more.")
        self.register_buffer("form", form.float())
        self.register_buffer("linear", linear.float())
        self.time, self.n_steps = time, n_steps

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Move every position by itself."""
        if not self.time:
            return h
        form, linear = self.get_buffer("form"), self.get_buffer("linear")
        moved = h
        for _ in range(self.n_steps):
            x = normalize(moved, dim=-1)
            gradient = 2 * x @ form + linear
            gradient = gradient - (gradient * x).sum(-1, keepdim=True) * x  # of x by h, but for the length of h
            moved = moved + self.time / self.n_steps * normalize(gradient, dim=-1)
        return moved


class Classifier(NamedTuple):
    """Log-odds x' form x + linear' x + a constant, of x = h / |h|."""

    form: Tensor
    linear: Tensor
    accuracy: float
    """On the states that it was fitted on."""


@dataclass(frozen=True, kw_only=True)
class ODESteer(Steerer):
    """The flow along the gradient of a quadratic classifier of states.

    - `time`: length of the way, in units of the state
    - `relative_norm`: replaces time: length of the way as a share of the mean length of the states
    - `n_steps`: Euler steps
    - `layer`: block from 0, or a share of the depth such as 0.4; None: 13/32 of the depth
    - `pool`: where a reply is read: mean over it, or its last token
    - `features`: of the count sketch
    - `scope`: positions that are edited
    """

    off: ClassVar[Mapping[str, Any]] = {"time": 0.0, "relative_norm": None}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "relative_norm": (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6),
        "layer": (0.0, 0.2, 0.4, 0.6, 0.8),
        "pool": ("response_mean", "last_response"),
    }

    time: NotNegative = 5.0
    relative_norm: NotNegative | None = None
    n_steps: Count = 10
    layer: Layer | None = None
    pool: Literal["response_mean", "last_response"] = "response_mean"
    features: Count = 8000
    scope: Literal["all", "response"] = "response"

    def fit(self, context: FitContext) -> Steering:
        """Fit the classifier, and describe the flow."""
        site = Site("resid_post", middle_layer(context.lm, self.layer))
        sides = contrast(context, site, self.pool)
        key = ("classifier", context.seed, site, self.pool, self.features)
        seed = int(torch.randint(2**31, (), generator=context.generator("sketch")))
        found = context.once(key, lambda: classifier(sides, self.features, seed))
        time = self.time if self.relative_norm is None else self.relative_norm * sides.mean_length
        context.report.update(accuracy=found.accuracy, time=time, relative_norm=time / sides.mean_length)
        return Steering(edits=(PlacedEdit(site, Flow(found.form, found.linear, time, self.n_steps), self.scope),))


def classifier(sides: Contrast, features: int, seed: int) -> Classifier:
    """Fit a logistic regression on sketched products of two components of unit states, and undo the sketch."""
    x = normalize(torch.cat(sides).double(), dim=1).numpy()
    labels = np.repeat([1, 0], len(sides.preferred))
    sketch = PolynomialCountSketch(gamma=GAMMA, degree=2, coef0=1, n_components=features, random_state=seed)
    sketched = sketch.fit_transform(x)
    regression = LogisticRegression(max_iter=1000).fit(sketched, labels)
    form, linear = unsketched(sketch, regression.coef_[0])
    return Classifier(form, linear, float(regression.score(sketched, labels)))


def unsketched(sketch: Any, weights: Any) -> tuple[Tensor, Tensor]:
    """Return the symmetric matrix and the vector of the quadratic function that weights of sketched features mean.

    Feature k of y = (sqrt(gamma) x, 1) is the sum of sign_0(i) sign_1(j) y_i y_j over all i and j whose places add up
    to k, modulo the number of features.
    """
    places, signs = sketch.indexHash_, sketch.bitHash_
    whole = weights[(places[0][:, None] + places[1][None]) % len(weights)] * signs[0][:, None] * signs[1][None]
    both = torch.from_numpy(whole + whole.T) / 2
    width = len(both) - 1
    return (sketch.gamma * both[:width, :width]).float(), (2 * sketch.gamma**0.5 * both[:width, width]).float()
