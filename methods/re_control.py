"""RE-Control: climb a value function at the input of the LM head, token by token.

Paper: Kong et al. 2024, "Aligning Large Language Models with Representation Editing: A Control Perspective", NeurIPS
2024, arXiv 2406.05954.

    V(o_t) ~ E[V(o_t+1)],  V(o_last) ~ reward         (temporal differences on rollouts of the unsteered model)
    u <- 0;  n times  u <- u + step_size * grad V(o_t + u);  next token from softmax(W (o_t + u))

at the response positions of the site `final`. V is a ReLU network; nothing below it and no KV entry changes.

Differences from the authors' code (Lingkai-Kong/RE-Control @f897869): what is implemented is the paper's method. Theirs
- gives the reward to the *first* state (an argmax over a mask of ones) and lets the gradient through the target:
  `terminal=first:detach=false` does the same, but for keeping the best epoch; V then hardly changes along a response,
- masks out the state that emits EOS where the pad token is EOS; here it is the terminal state,
- trains in bfloat16 without a validation set, and adds up u in float16; here float32, and u is added once,
- labels the whole continuation; here the reward sees the response as it is cut everywhere else.
Added here: states and rewards have unit scale in training and V is put back into their units, rollouts are split by
group, the epoch that predicts the reward of the validation rollouts best is kept, and training ends 20 epochs after it.
The paper's TD(0), `td_lambda=0:epochs=100`, hands the reward back by one token per step of Adam or so: with its 161,000
rollouts that is enough, with some hundred V hardly differs between prompts. The default takes lambda-returns, which
reach the first token at once, and trains for as long as the validation rollouts gain by it.

Defaults: network and `n_steps` as published for `setting`; 4096 hidden units, or the width of the state where that is
less; Adam at 1e-4. Batches have 16 rollouts: the published 512 were of 161,000, and a few hundred rollouts would give
one step per epoch. `td_lambda=1` is Monte-Carlo; `terminal=first` knows TD(0) alone. `epochs` is a limit: without it
the validation rollouts say when to end. `layers=1` makes V linear, and u a constant logit bias. The published step does
not carry over to another model, reward or value function: on the testbed it changes no reply. `relative_norm` is
scale-free: the step at which the median of |u| / |o| over states of the rollouts has this value, 0.2, ours, where
nothing is given. `step_size=published` is that of `setting`.
`target` is the stopping rule of Pre-Control (arXiv 2510.12121), which steers to a wanted value instead of up: a token's
state is moved until V reaches it, and one that is there already not at all. Pre-Control takes steps of AdamW along the
gradient of (V - target)^2 with weights shared by a batch; here they are RE-Control's, and a row is moved by itself.
On the first testbed `target=1` gains +0.36 (+/- 0.22) of gold on 64 validation prompts of HH-RLHF, one seed, greedy.

Cost: one response to each training prompt, and one pass over it, to fit. Per token, `n_steps` times three products of a
vector with a hidden x hidden matrix, or one where the network has two layers: `steerbench/steering/ascent.py`.

Pitfalls: V is climbed, so it finds what fools the reward: read the held-out reward beside it. A fit amplifies rounding:
another batch size or device is like another seed.

Learns from: rollouts with rewards. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Ascent, PlacedEdit
from steerbench.learn import Count, NotNegative, Positive, Range, Share, Training, Whole, rollout_value, step_for
from steerbench.learn.valuation import FINAL


class Published(NamedTuple):
    """Hyperparameters of one setting of the paper."""

    layers: int
    step_size: float
    n_steps: int


PUBLISHED = {
    "hh_vicuna": Published(3, 0.5, 30),
    "hh_falcon": Published(2, 0.2, 200),
    "shp_vicuna": Published(2, 1.0, 50),
    "shp_llama3": Published(2, 1.0, 30),
}


@dataclass(frozen=True, kw_only=True)
class REControl(Steerer):
    """Gradient ascent on a value function of the last hidden state.

    - `setting`: of the paper: layers and number of steps that are not given, and the published step size
    - `step_size`: replaces relative_norm: of the ascent, in units of state per gradient; or that of the setting
    - `n_steps`: of the ascent, for each token
    - `relative_norm`: median length of the ascent as a share of that of the state; None: 0.2, or by step_size
    - `target`: value at which a token's ascent ends, in standard deviations over the rollouts' mean; None: never
    - `layers`: of the value function; 1 is linear
    - `hidden`: units of its hidden layers; None: 4096, or the width of the state where that is less
    - `td_lambda`: 0 learns from the next state alone, 1 from the reward alone
    - `terminal`: state that is given the reward; `first` is a fault of the published code
    - `detach`: whether the gradient stops at the target; false is a fault of the published code
    - `lr`: learning rate of Adam
    - `epochs`: at most; the best one is kept
    - `batch_size`: rollouts in a step of training
    """

    off: ClassVar[Mapping[str, Any]] = {"n_steps": 0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "relative_norm": (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2),
        "td_lambda": (0.9, 0.95, 1.0),
    }

    setting: Literal["hh_vicuna", "hh_falcon", "shp_vicuna", "shp_llama3"] = "hh_vicuna"
    step_size: float | Literal["published"] | None = None
    n_steps: Whole | None = None
    relative_norm: NotNegative | None = None
    target: float | None = None
    layers: Annotated[int, Range(1, 3)] | None = None
    hidden: Count | None = None
    td_lambda: Share = 0.95
    terminal: Literal["last", "first"] = "last"
    detach: bool = True
    lr: Positive = 1e-4
    epochs: Count | None = None
    batch_size: Count = 16

    def __post_init__(self) -> None:
        if self.step_size is not None and self.relative_norm is not None:
            raise SteerbenchError("step_size and relative_norm exclude each other; give one of them.")

    def fit(self, context: FitContext) -> Steering:
        """Train V on the states of rollouts, and describe the ascent on it."""
        published = PUBLISHED[self.setting]
        n_steps = published.n_steps if self.n_steps is None else self.n_steps
        training = self._training(published.layers)
        value = rollout_value(context, training)
        step_size = published.step_size if self.step_size == "published" else self.step_size
        if step_size is None:
            step_size = step_for(value.function, value.sample, n_steps, self.relative_norm)
        target = None if self.target is None else value.reward_mean + self.target * value.reward_spread
        context.report.update(value.report, step_size=step_size, n_steps=n_steps, target=target)
        return Steering(edits=(PlacedEdit(FINAL, Ascent(*value.function, step_size, n_steps, target)),))

    def _training(self, published_layers: int) -> Training:
        return Training(
            layers=published_layers if self.layers is None else self.layers,
            hidden=self.hidden,
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            td_lambda=self.td_lambda if self.terminal == "last" else 0.0,
            terminal=self.terminal,
            detach=self.detach,
        )
