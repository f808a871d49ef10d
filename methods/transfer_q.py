"""Transfer Q*: choose what comes next by the reward of a response that goes on from it.

Paper: Chakraborty et al. 2024, "Transfer Q*: Principled Decoding for LLM Alignment", NeurIPS 2024, arXiv 2405.20495.

    Q(x, y, z) = r(x, [y, z, rest]),   the rest drawn from a model
    pi(z | x, y) ~ pi_0(z | x, y) exp(weight Q(x, y, z))

for the next block z. Here z is taken among `candidates` draws of it with odds exp(weight Q): draws from pi_0,
reweighted, which give pi as their number grows. The reward reads whole responses, or longer beginnings, where blockwise
decoding with a guide reads short ones. A block as long as the response is soft best of N.

Differences from the authors' code (umd-huang-lab/Transfer-Q, no licence, not read): the paper takes the rest from
a model aligned to the reward, or to another one; this is the model itself, steered as the rest of the steering says, so
that Q is the value of the model and not of the optimum: compose it with a method that aligns. Theirs takes the argmax
of logit + weight Q over the 10 most likely tokens, one prompt at a time.

Defaults: candidates 10, lookahead 20 and blocks of 1 token as there; weight 1 in units of the reward. Cost: no fit; for
each block the passes of block and lookahead for all candidates, 21 for a token where blocks have one, the dearest of
all; blocks of 8 take 3.5 for a token.

Pitfalls: one rollout is a noisy Q, and a large weight prefers the lucky. Greedy candidates are all alike, so it needs a
temperature above 0. The bound of its KL, 1.4 nats for each choice among 10, is far above what small weights do.

Learns from: reward at test time. Touches: choice of responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, ClassVar

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Blocks, Candidate, DecodePart, DecodingContext, bound_of, pick, rewards_of
from steerbench.learn import Count, NotNegative, Range, Whole


class ByRollout(DecodePart):
    """Go on from a candidate that is drawn by the reward of what follows it."""

    def __init__(self, candidates: int, block: int, lookahead: int, weight: float) -> None:
        if not 1 <= candidates <= 64 or block < 1 or lookahead < 0 or not 0 <= weight < inf:
            raise SteerbenchError(
                f"transfer_q: candidates={candidates} must be from 1 to 64, block={block} 1 or more, "
                f"lookahead={lookahead} and weight={weight} 0 or more."
            )
        self.candidates, self.block, self.lookahead, self.weight = candidates, block, lookahead, weight

    @property
    def blocks(self) -> Blocks:
        """Blocks of one length, and what is drawn behind them."""
        return Blocks(tokens=self.block, lookahead=self.lookahead)

    def choice_kl(self, draws: Sequence[int]) -> float:
        """Upper bound of KL(chosen || drawn), in nats."""
        return bound_of(draws)

    def select(self, context: DecodingContext, rows: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        """Continue the candidate that is drawn for each prompt."""
        of_rows = zip(rewards_of(context, rows), context.generators, strict=True)
        return [[pick(self.weight * rewards, generator)] * self.candidates for rewards, generator in of_rows]


@dataclass(frozen=True, kw_only=True)
class TransferQ(Steerer):
    """Blocks chosen by the reward of a rollout from them.

    - `candidates`: draws of each block, 1 to 64
    - `block`: tokens of a block
    - `lookahead`: tokens that are drawn behind it to judge it by
    - `weight`: of the reward, in log-odds per unit
    """

    engines = ("transformers",)
    off: ClassVar[Mapping[str, Any]] = {"candidates": 1}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "weight": (0.5, 1.0, 2.0, 4.0, 8.0),
        "block": (1, 4, 8),
    }
    graded = False  # what is known of the KL is a bound by the number of draws

    candidates: Annotated[int, Range(1, 64)] = 10
    block: Count = 1
    lookahead: Whole = 20
    weight: NotNegative = 1.0

    def fit(self, context: FitContext) -> Steering:
        """Nothing to learn."""
        return Steering(decode=ByRollout(self.candidates, self.block, self.lookahead, self.weight))
