"""InfAlign in the choice: draw N responses and take one by its calibrated, transformed reward.

Paper: Balashankar et al. 2025, "InfAlign: Inference-aware language model alignment", ICML 2025, arXiv 2412.19792.

    C(x, y) = P(r(x, z) < r(x, y)) + P(r(x, z) = r(x, y)) / 2,   z drawn from the model
    pi(y | x) ~ pi_0(y | x) exp(phi(C(x, y)) / beta),            phi(u) = exp(tilt u), or u

The calibrated reward is the quantile of a response among those of its own prompt, whatever the scale of the reward.
The paper shows that the best model to draw best of N from is of this form, with a tilt above 0, and below 0 against the
worst of N. It trains that model; here it is approximated as `best_of_n:beta` does: of N draws, one is taken with odds
exp(phi(C) / beta), C counted among the others.

Differences from the paper (no code of the authors): no training, C from N - 1 draws for the very prompt instead of 100
for each prompt of the training data, and phi is brought to the range from 0 to 1, (exp(tilt u) - 1) / (exp(tilt) - 1),
so that `beta` means the same for each tilt. `tilt=0` is u itself.

Defaults: N 8; tilt 10, the paper's choice for best of N; beta 0.1. Cost: no fit; N responses and N scores of the reward
model for each prompt, drawn together on one cache.

Pitfalls: with beta to 0 it is best of N, with beta large a response at random. Greedy candidates are all alike, so it
needs a temperature above 0. `n` is a price, not a setting to tune.

Learns from: reward at test time. Touches: choice of responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Candidate, DecodePart, DecodingContext, bound_of, pick, rewards_of
from steerbench.learn import Positive, Range


class Calibrated(DecodePart):
    """Draw a candidate by the quantile of its reward."""

    def __init__(self, candidates: int, tilt: float, beta: float) -> None:
        if not 1 <= candidates <= 64 or not isfinite(tilt) or not beta > 0:
            raise SteerbenchError(
                f"inf_align: n={candidates} must be from 1 to 64, tilt={tilt} a number, and beta={beta} above 0."
            )
        self.candidates, self.tilt, self.beta = candidates, tilt, beta

    @property
    def sequence_kl(self) -> float:
        """Upper bound of KL(chosen || drawn), in nats."""
        return bound_of([self.candidates])

    def select(self, context: DecodingContext, rows: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        """Return the candidate that is drawn for each prompt."""
        of_rows = zip(rewards_of(context, rows), context.generators, strict=True)
        return [[pick(self.transformed(calibrated(r)) / self.beta, g)] for r, g in of_rows]

    def transformed(self, quantiles: Tensor) -> Tensor:
        """Return phi of each quantile, from 0 to 1."""
        if not self.tilt:
            return quantiles
        return torch.expm1(self.tilt * quantiles) / torch.expm1(torch.tensor(self.tilt, dtype=torch.float64))


def calibrated(rewards: Tensor) -> Tensor:
    """Return the share of the others that each of the rewards beats, ties one half, (n,) float64; 1/2 where alone."""
    if len(rewards) == 1:
        return torch.full((1,), 0.5, dtype=torch.float64)
    beaten = (rewards[:, None] > rewards).double() + (rewards[:, None] == rewards).double() / 2
    return (beaten.sum(1) - 0.5) / (len(rewards) - 1)


@dataclass(frozen=True, kw_only=True)
class InfAlign(Steerer):
    """One of N responses, drawn by the quantile of its reward.

    - `n`: responses that are drawn, 1 to 64
    - `tilt`: of the exponential transformation; 0 is none, below 0 avoids the worst
    - `beta`: temperature of the choice; the transformed quantile goes from 0 to 1
    """

    off: ClassVar[Mapping[str, Any]] = {"n": 1}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "beta": (0.02, 0.05, 0.1, 0.2, 0.5),
        "tilt": (-10.0, 0.0, 5.0, 10.0),
    }
    graded = False

    n: Annotated[int, Range(1, 64)] = 8
    tilt: float = 10.0
    beta: Positive = 0.1

    def fit(self, context: FitContext) -> Steering:
        """Nothing to learn."""
        return Steering(decode=Calibrated(self.n, self.tilt, self.beta))
