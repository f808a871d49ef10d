"""ARGS: the guiding reward of each likely next token, added to its logit.

Paper: Khanov et al. 2024, "ARGS: Alignment as Reward-Guided Search", ICLR 2024, arXiv 2402.01694.

    score(z)  =  logit_0(z | x, y_<t) + w * r(x, y_<t z)         for the k most likely z; no other token is taken

greedily (ARGS-greedy), or drawn from the softmax of the scores (ARGS-stochastic), as the decoding says.

Differences from the authors' code (deeplearning-wisc/args @db0e1c1): a response ends at its end token, where theirs
always emits all new tokens; the reward model reads text, so that it may have another tokenizer, and scores the
candidates of all rows at once.

Defaults: k 10 and w 1.5 as for the published outputs. `relative_w` replaces w by a weight per standard deviation of the
rewards of the rollouts, for w has the units of the reward model. Cost: nothing to fit without `relative_w`; for each
token, k scores of the reward model. A decoder keeps what the texts share in a cache and reads their last tokens, in one
pass; another one reads each text from its beginning.

Pitfalls: a reward model was trained on whole replies and is asked about beginnings; what it wins it wins by the guide:
compare the held-out reward. The cut to k tokens acts at any weight, and where responses are sampled it alone can move
a model further than the reward does: compare a weight near zero.

Learns from: reward at test time. Touches: logits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Reweighting, Step
from steerbench.learn import Count


class GuideAhead(Reweighting):
    """The guiding reward of the response so far and each candidate behind it; nothing in rows that have ended."""

    only = asks_reward = True

    def __init__(self, beta: float, top: int) -> None:
        self.beta, self.top = beta, top

    def score(self, step: Step, tokens: Tensor) -> Tensor:
        """Return the reward of each candidate, (rows, k)."""
        return step.rewards_ahead(tokens)


@dataclass(frozen=True, kw_only=True)
class ARGS(Steerer):
    """Reward-guided search, token by token.

    - `k`: most likely tokens that are scored
    - `w`: weight of the reward, in logits per unit of it
    - `relative_w`: replaces w: in logits per standard deviation of the rewards of the rollouts
    """

    engines = ("transformers",)
    off: ClassVar[Mapping[str, Any]] = {"w": 0.0, "relative_w": None}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"relative_w": (0.25, 0.5, 1.0, 2.0, 4.0)}

    k: Count = 10
    w: float = 1.5
    relative_w: float | None = None

    def fit(self, context: FitContext) -> Steering:
        """Scale the weight, if asked."""
        weight = self.w
        if self.relative_w is not None:
            rewards = torch.tensor([r.reward for r in context.rollouts()])
            weight = self.relative_w / max(float(rewards.std(correction=0)), 1e-6)
            context.report["w"] = weight
        return Steering(logits=(GuideAhead(weight, self.k),))
