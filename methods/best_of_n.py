"""Best of N: draw N responses and keep the one that the guiding reward likes best.

Paper: Stiennon et al. 2020, arXiv 2009.01325; bounds by Beirami et al. 2024, arXiv 2401.01879.

    y = argmax_i r(x, y_i),  y_1 .. y_N drawn alike
    KL(chosen || drawn) <= log N - (N - 1) / N,    win rate <= N / (N + 1)

The win rate is against one draw, by the guide itself. Hardly anything wins more of the guide at that KL (Gui et al.
2024, arXiv 2406.00832), which makes it the frontier that other methods are drawn beside. Composed with other parts, it
chooses among steered candidates.

`beta` above 0 is soft best of N (Verdun et al. 2025, arXiv 2505.03156): candidate i is taken with a probability
proportional to exp(r(x, y_i) / beta). `reject_every` is speculative rejection (Sun et al. 2024, arXiv 2410.20290):
after every so many tokens the half that the guide likes less, read as far as it is, is given up. Both keep the bound.

Differences from reference code: none; of equal rewards the first candidate is kept. Speculative rejection starts as
many candidates as memory holds and asks the guide when it is full; here it asks after `reject_every` tokens.

Defaults: n 4; 1 is the model itself. Cost: no fit; N responses and N scores of the reward model for each prompt. All
candidates of a batch of prompts are rows of one batch on one cache of the prompts, so that 16 of them take about four
times as long as one; rejection takes half of the rows out each time, and asks the guide once more.

Pitfalls: greedy candidates are all alike, so it needs a temperature above 0. What it wins it wins by the guide: compare
the held-out reward. `n` is a price, not a setting to tune: more is always better by the guide. A guide that was trained
on whole responses is asked about beginnings by `reject_every`.

Learns from: reward at test time. Touches: choice of responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Blocks, Candidate, DecodePart, DecodingContext, bound_of, pick, rewards_of
from steerbench.learn import NotNegative, Range, Whole


class Best(DecodePart):
    """Keep the candidate with the highest reward, or draw one by it; give up the worse half on the way there."""

    def __init__(self, candidates: int, beta: float = 0.0, reject_every: int = 0) -> None:
        if not 1 <= candidates <= 64:
            raise SteerbenchError(f"best_of_n: n is {candidates}; it must be from 1 to 64.")
        if not 0 <= beta < inf or reject_every < 0:
            raise SteerbenchError(f"best_of_n: beta={beta} and reject_every={reject_every} must be 0 or more.")
        self.candidates, self.beta, self.reject_every = candidates, beta, reject_every

    @property
    def blocks(self) -> Blocks:
        """Where halves are given up."""
        return Blocks(tokens=self.reject_every or None)

    @property
    def sequence_kl(self) -> float:
        """Upper bound of KL(chosen || drawn), in nats."""
        return bound_of([self.candidates])

    def select(self, context: DecodingContext, rows: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        """Return the better half, best first, while one of them goes on; then the one that is taken."""
        of_rows = zip(rows, rewards_of(context, rows), context.generators, strict=True)
        return [self._kept(row, rewards, generator) for row, rewards, generator in of_rows]

    def _kept(self, row: Sequence[Candidate], rewards: Tensor, generator: torch.Generator) -> list[int]:
        ranked = rewards.argsort(descending=True, stable=True).tolist()
        left = ranked if all(c.finished for c in row) else ranked[: (len(row) + 1) // 2]
        if not all(row[i].finished for i in left):
            return left
        if not self.beta:
            return left[:1]
        left.sort()
        return [left[pick(rewards[left] / self.beta, generator)]]


@dataclass(frozen=True, kw_only=True)
class BestOfN(Steerer):
    """The best of N responses by the guiding reward.

    - `n`: responses that are drawn, 1 to 64
    - `beta`: in units of the reward; 0 takes the best, more draws one with odds exp(reward / beta)
    - `reject_every`: tokens after which the worse half is given up; 0: never
    """

    off: ClassVar[Mapping[str, Any]] = {"n": 1}

    n: Annotated[int, Range(1, 64)] = 4
    beta: NotNegative = 0.0
    reject_every: Whole = 0

    def fit(self, context: FitContext) -> Steering:
        """Nothing to learn."""
        return Steering(decode=Best(self.n, self.beta, self.reject_every))
