"""DeAL: beam search whose beams are judged by their likelihood and by the reward of what they lead to.

Paper: Huang et al. 2024, "DeAL: Decoding-time Alignment for Large Language Models", ACL 2025, arXiv 2402.06147.

    score(y) = log p(y | x) + weight * r(x, [y, lookahead])
    each beam is continued with its `branches` most likely tokens; the `beams` of the highest score go on

as in A* search, the reward of a lookahead being the heuristic of what will come. With weight 0 and blocks of one token
it is beam search.

Differences from other code (there is none of the authors; IBM/AISteer360 @3ff4420 has a form of it): theirs draws by
beam search, keeps the lookahead and judges by the reward alone. Here the lookahead is dropped, and drawn as the run
draws: greedily at temperature 0, sampled otherwise. The first beams begin with the `beams` x `branches` most likely
tokens. A beam that has ended stays until all that are kept have.

Defaults: 3 beams, 5 branches, lookahead 10 as there; blocks of 8 tokens, of which the first is one of the most likely
and the others are drawn as the run draws; with `block=1` every token is searched, at 11 passes for each. Cost: no fit;
`beams` x `branches` rows for each prompt, and as many scores of the reward model for each block.

Pitfalls: it looks for likely responses, which are short and dull, and by that alone it differs from a baseline that is
sampled. Log-likelihoods add up with length and rewards do not, so that `weight` depends on both. Its KL is not known.

Learns from: reward at test time. Touches: choice of responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any, ClassVar

import torch

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Blocks, Candidate, DecodePart, DecodingContext, rewards_of
from steerbench.learn import Count, Range, Whole

MOST = 64
"""Beams x branches: rows of a batch for each prompt."""


class Beams(DecodePart):
    """Keep the best beams by likelihood and reward, and branch each of them."""

    def __init__(self, beams: int, branches: int, block: int, lookahead: int, weight: float) -> None:
        if min(beams, branches, block) < 1 or beams * branches > MOST or lookahead < 0 or not isfinite(weight):
            raise SteerbenchError(
                f"deal: beams={beams}, branches={branches} and block={block} must be 1 or more, beams x branches at "
                f"most {MOST}, lookahead={lookahead} 0 or more, and weight={weight} a number."
            )
        self.beams, self.branches, self.candidates = beams, branches, beams * branches
        self.block, self.lookahead, self.weight = block, lookahead, weight

    @property
    def blocks(self) -> Blocks:
        """Blocks that begin with the most likely tokens, and what is drawn behind them."""
        return Blocks(tokens=self.block, lookahead=self.lookahead, top=True)

    def select(self, context: DecodingContext, rows: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        """Return the beams that are kept of each prompt, best first, once for each branch."""
        chosen = []
        for row, rewards in zip(rows, rewards_of(context, rows), strict=True):
            log_p = torch.tensor([c.log_prob for c in row], dtype=torch.float64)
            order = (log_p + self.weight * rewards.double()).argsort(descending=True, stable=True)
            kept = order.tolist()[: self.beams]
            chosen.append([i for i in kept for _ in range(1 if row[i].finished else self.branches)])
        return chosen


@dataclass(frozen=True, kw_only=True)
class DeAL(Steerer):
    """Beam search by likelihood and the reward of a lookahead.

    - `beams`: that are kept
    - `branches`: most likely tokens with which each is continued; beams x branches is at most 64
    - `block`: tokens between two choices
    - `lookahead`: tokens that are drawn behind a beam to judge it by
    - `weight`: of the reward, in nats per unit
    """

    engines = ("transformers",)
    off: ClassVar[Mapping[str, Any]] = {"beams": 1, "branches": 1}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "weight": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
        "block": (4, 8, 16),
    }
    graded = False

    beams: Annotated[int, Range(1, 64)] = 3
    branches: Annotated[int, Range(1, 64)] = 5
    block: Count = 8
    lookahead: Whole = 10
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.beams * self.branches > MOST:
            raise SteerbenchError(
                f"deal: {self.beams} beams with {self.branches} branches each are more than {MOST} rows."
            )

    def fit(self, context: FitContext) -> Steering:
        """Nothing to learn."""
        return Steering(decode=Beams(self.beams, self.branches, self.block, self.lookahead, self.weight))
