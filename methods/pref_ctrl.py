"""Pref-CTRL: RE-Control on a value function that also ranks the replies of preference pairs.

Paper: "Pref-CTRL: Preference-driven LLM Alignment using Representation Editing", ACL 2026, arXiv 2604.23543.

    loss = RE-Control's + margin * mean( -log sigmoid( V(s_w) - V(s_l) ) ) + anchor * mean( (V(s_y) - V(s_w))^2 )
    u <- 0;  n times  u <- u + step_size * grad V(o_t + u);  next token from softmax(W (o_t + u))

s is the last state of a reply at the site `final`: of the preferred reply w, the other one l, and the rollout y to the
same prompt. V gets the reward of rollouts, which the model wrote, and the order of replies, which it did not. With both
weights at 0 it is `re_control`, to the bit.

Differences from the authors' code (UTS-nlPUG/pref-ctrl), beside those of `re_control`, whose training this is:
- V is in standard deviations of the reward in the two terms, so that their weights carry over; theirs is as it comes;
- the temporal differences along w and l are left out: their text has them, their published module of the margin not;
- a pair counts where its rollout is in the mini-batch; the best epoch is that of the rollouts' rewards alone.

Defaults: both weights 1; 50 iterations, as published; layers, network, training and the length of a step as in
`re_control`. The published `step_size=0.5` does not carry over.

Cost: to fit, that of `re_control` and a forward pass over both replies of each pair. Per token as `re_control`.

A fit takes 110 s of CPU time on the testbed. There it gains +0.94 of gold on HH-RLHF and +0.95 on SHP (0.05 nats per
token, five seeds, 96 test prompts), surely, and no more than `re_control` does with the same rollouts: -0.04 (-0.25 to
+0.17) and 0.00 (-0.08 to +0.09) beside it. Tuned by the guide with eight trials, which chose steps of 0.2 nats per
token, it gains +0.83 (+0.47 to +1.18) and +0.77 (+0.39 to +1.15), neither sure: its seeds differ.

Pitfalls: those of `re_control`. The margin sees states after replies that the model would not write, and the ascent
starts from states that it does.

Learns from: rollouts with rewards, pairs. Touches: activations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Ascent, PlacedEdit
from steerbench.learn import Count, NotNegative, Pool, Positive, Range, Share, Training, Whole, step_for
from steerbench.learn.valuation import FINAL, RolloutValue, value_of_rollouts

LAST: Pool = "last_response"


@dataclass(frozen=True, kw_only=True)
class PrefCTRL(Steerer):
    """Gradient ascent on a value function that learned from rewards and from preferences.

    - `step_size`: replaces relative_norm: of the ascent, in units of state per gradient; 0.5 is published
    - `n_steps`: of the ascent, for each token
    - `relative_norm`: median length of the ascent as a share of that of the state; None: 0.2, or by step_size
    - `margin`: weight of the preferred reply's lead over the other one
    - `anchor`: weight of the squared distance between the values of rollout and preferred reply
    - `layers`: of the value function; 1 is linear
    - `td_lambda`: 0 learns from the next state alone, 1 from the reward alone
    - `lr`: learning rate of Adam
    - `epochs`: at most; the best one is kept
    - `batch_size`: rollouts in a step of training
    """

    off: ClassVar[Mapping[str, Any]] = {"n_steps": 0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "relative_norm": (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2),
        "td_lambda": (0.9, 0.95, 1.0),
    }

    step_size: float | None = None
    n_steps: Whole = 50
    relative_norm: NotNegative | None = None
    margin: NotNegative = 1.0
    anchor: NotNegative = 1.0
    layers: Annotated[int, Range(1, 3)] = 3
    td_lambda: Share = 0.95
    lr: Positive = 1e-4
    epochs: Count | None = None
    batch_size: Count = 16

    def __post_init__(self) -> None:
        if self.step_size is not None and self.relative_norm is not None:
            raise SteerbenchError("step_size and relative_norm exclude each other; give one of them.")

    def fit(self, context: FitContext) -> Steering:
        """Train V on rollouts and pairs, and describe the ascent on it."""
        training = Training(
            layers=self.layers,
            hidden=None,
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            td_lambda=self.td_lambda,
        )
        key = ("value function", context.seed, training, self.margin, self.anchor)
        value = context.once(key, lambda: self._train(context, training))
        step_size = self.step_size
        if step_size is None:
            step_size = step_for(value.function, value.sample, self.n_steps, self.relative_norm)
        context.report.update(value.report, step_size=step_size, n_steps=self.n_steps)
        return Steering(edits=(PlacedEdit(FINAL, Ascent(*value.function, step_size, self.n_steps)),))

    def _train(self, context: FitContext, training: Training) -> RolloutValue:
        ends = last_states(context)
        if not ends or not (self.margin or self.anchor):
            return value_of_rollouts(context, training)

        def of_pairs(value: Callable[[Tensor], Tensor], rows: Sequence[int]) -> Tensor:
            chosen = [ends[i] for i in rows if i in ends]
            if not chosen:
                return torch.zeros((), device=context.lm.device)
            rollout, preferred, other = value(torch.stack(chosen)).unbind(1)
            lead = -logsigmoid(preferred - other).mean()
            return self.margin * lead + self.anchor * (rollout - preferred).square().mean()

        return value_of_rollouts(context, training, of_pairs)


def last_states(context: FitContext) -> dict[int, Tensor]:
    """Return for each rollout that has a token the last states of it, of the preferred and of the other reply.

    (3, width) each, by the index of the rollout among those that have one; without pairs whose reply is empty. The
    last state of a reply is the one behind its last token; a rollout's is that which its last token was drawn from.
    """
    limit, lm = context.decoding.max_new_tokens, context.lm
    drawn = [(e, r.tokens) for e, r in zip(context.examples, context.rollouts(), strict=True) if r.tokens.response]
    pairs = [[lm.tokens(e.prompt, reply, limit) for reply in (e.chosen, e.rejected)] for e, _ in drawn]
    rows = [i for i, pair in enumerate(pairs) if all(t.response for t in pair)]
    preferred, other = (context.activations(FINAL, [pairs[i][side] for i in rows], LAST) for side in (0, 1))
    ends: dict[int, Tensor] = {}
    for batch in context.states(FINAL, [tokens for _, tokens in drawn]).batches(range(len(drawn)), 64):
        ends.update(zip(batch.rows, (one[-1] for one in torch.split(batch.states, batch.lengths)), strict=True))
    return {i: torch.stack([ends[i], w, o]) for i, w, o in zip(rows, preferred, other, strict=True)}
