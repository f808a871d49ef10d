"""Controlled decoding, token by token: the next tokens are re-weighted by what a value function expects behind them.

Paper: Mudgal et al. 2024, "Controlled Decoding from Language Models", ICML 2024, arXiv 2310.17022. There is no code.

    p(z | x, y_<t)  ~  p_0(z | x, y_<t) exp(beta * V(x, y_<t, z))

V(x, y) is the reward that the unsteered model is expected to get when it goes on from y, which makes p the best policy
for the reward less KL / beta. V is the same as that of RE-Control, trained once for both: a network on the state at
`final`, which learns from rollouts by lambda-returns. `td_lambda=1` is the regression of the reward on every prefix
(CD-FUDGE). With `head=candidates` it is read at the states behind the `top` most likely tokens, which cost one short
pass on the cache that is there. With `head=q` a second head is trained on the same rollouts to tell from the current
state alone what each next token adds,

    Q(o, z) = <A o + a, P e_z>,   sum over rollouts and t of (Q(o_t, y_t) - (V(o_t+1) - V(o_t)))^2   as small as it gets

with the reward in place of V behind the last token, P the first `rank` principal directions of the unembedding e: all
next tokens are scored by one product.

Differences from the paper: the prefix scorer is a head on the model's own states, not another model; a token that ends
the response has the value of the state that it is drawn from, where V learned the reward of what had ended. The tokens
behind the `top` ones keep their probability, so that no distribution is cut and beta 0 is the model.

Defaults: `top` 4; V as in `re_control`. `beta` is in nats per unit of the reward: `relative_beta` replaces it by one
per standard deviation of the rewards of the rollouts. Cost: the fit of `re_control`, and of the Q-head some seconds;
per token, a pass of `top` positions for each row, or one product of a vector with a rank x vocabulary matrix.

Pitfalls: V is asked about states that it was not trained on as soon as beta is large, and it finds what fools the
reward: read the held-out reward beside it. KL per token is measured, not what beta says.

Learns from: rollouts with rewards. Touches: logits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Reweighting, Step
from steerbench.learn import Count, Positive, Range, Share, Training, ValueFunction, next_token_head, rollout_value


class ValueAhead(Reweighting):
    """V behind each of the most likely tokens; a token that ends the response has that of the state it comes from.

    `weights[i]` is (out, in), `biases[i]` (out,), the last map has one output.
    """

    reads_states = looks_ahead = True

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], beta: float, top: int) -> None:
        self.weights, self.biases, self.beta, self.top = list(weights), list(biases), beta, top

    def score(self, step: Step, tokens: Tensor) -> Tensor:
        """Return V of the states behind the tokens, (rows, k)."""
        value = ValueFunction(*(tuple(t.to(step.logits.device) for t in part) for part in (self.weights, self.biases)))
        ends = torch.isin(tokens, torch.tensor(step.lm.end_ids, device=tokens.device, dtype=tokens.dtype))
        return torch.where(ends, value(step.states)[:, None], value(step.ahead(tokens)))


class NextTokenValue(Reweighting):
    """What each next token adds, by one product: <A o + a, P e_z>.

    `down` is (rank, width), `offset` (rank,), `tokens` (rank, vocabulary).
    """

    reads_states = True

    def __init__(self, down: Tensor, offset: Tensor, tokens: Tensor, beta: float) -> None:
        self.down, self.offset, self.tokens, self.beta = down, offset, tokens, beta

    def score(self, step: Step, tokens: Tensor) -> Tensor:
        """Return Q of all tokens, (rows, vocabulary)."""
        states = step.states
        down, offset, table = (t.to(states.device) for t in (self.down, self.offset, self.tokens))
        return (torch.nn.functional.linear(states, down, offset)) @ table


@dataclass(frozen=True, kw_only=True)
class ControlledDecoding(Steerer):
    """Next tokens re-weighted by a value function.

    - `head`: `candidates` reads V behind the most likely tokens, `q` scores all of them from the current state
    - `beta`: in nats per unit of the reward
    - `relative_beta`: replaces beta: in nats per standard deviation of the rewards of the rollouts
    - `top`: how many tokens are looked at, with `head=candidates`
    - `rank`: of the head that scores all tokens, with `head=q`
    - `layers`: linear maps of V; 1 is linear
    - `hidden`: units of its hidden layers; None: 4096, or the width of the state where that is less
    - `td_lambda`: 0 learns from the next state alone, 1 from the reward alone
    - `lr`: learning rate of Adam
    - `epochs`: at most; the best one is kept
    - `batch_size`: rollouts in a step of training
    """

    engines = ("transformers",)
    off: ClassVar[Mapping[str, Any]] = {"beta": 0.0, "relative_beta": None}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "relative_beta": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
        "td_lambda": (0.9, 0.95, 1.0),
    }

    head: Literal["candidates", "q"] = "candidates"
    beta: float | None = None
    relative_beta: float | None = 2.0
    top: Count = 4
    rank: Count = 32
    layers: Annotated[int, Range(1, 3)] = 3
    hidden: Count | None = None
    td_lambda: Share = 0.95
    lr: Positive = 1e-4
    epochs: Count | None = None
    batch_size: Count = 16

    def __post_init__(self) -> None:
        if (self.beta is None) == (self.relative_beta is None):
            raise SteerbenchError("beta and relative_beta exclude each other; give one, and none for the other.")

    def fit(self, context: FitContext) -> Steering:
        """Train V, and perhaps Q, on the rollouts."""
        value = rollout_value(context, self._training())
        beta = self._beta(context)
        context.report.update(value.report, beta=beta)
        if self.head == "candidates":
            return Steering(logits=(ValueAhead(*value.function, beta, self.top),))
        head = next_token_head(context, value.function, self.rank, self._training())
        context.report["explained"] = head.explained
        return Steering(logits=(NextTokenValue(head.down, head.offset, head.tokens, beta),))

    def _training(self) -> Training:
        return Training(
            layers=self.layers,
            hidden=self.hidden,
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            td_lambda=self.td_lambda,
        )

    def _beta(self, context: FitContext) -> float:
        if self.relative_beta is None:
            return float(self.beta or 0.0)
        rewards = torch.tensor([r.reward for r in context.rollouts() if r.tokens.response])
        spread = float(rewards.std(correction=0))
        return self.relative_beta / spread if spread > 1e-6 * max(1.0, float(rewards.abs().mean())) else 0.0
