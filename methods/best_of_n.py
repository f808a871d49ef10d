"""Best of N: draw N responses and keep the one that the guiding reward likes best.

Paper: Stiennon et al. 2020, arXiv 2009.01325; bounds by Beirami et al. 2024, arXiv 2401.01879.

    y = argmax_i r(x, y_i),  y_1 .. y_N drawn alike
    KL(chosen || drawn) <= log N - (N - 1) / N,    win rate <= N / (N + 1)

The win rate is against one draw, by the guide itself. Hardly anything wins more of the guide at that KL (Gui et al.
2024, arXiv 2406.00832), which makes it the frontier that other methods are drawn beside. Composed with other parts, it
chooses among steered candidates.

Differences from reference code: none; of equal rewards the first candidate is kept.

Defaults: n 4; 1 is the model itself. Cost: no fit; N responses and N scores of the reward model for each prompt, which
is N times the time where they are drawn one after another, as here.

Pitfalls: greedy candidates are all alike, so it needs a temperature above 0. What it wins it wins by the guide: compare
the held-out reward. `n` is a price, not a setting to tune: more is always better by the guide.

Learns from: reward at test time. Touches: choice of responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

from steerbench import FitContext, Reward, SteerbenchError, Steerer, Steering
from steerbench.data import Dialogue
from steerbench.edits import DecodePart


class Best(DecodePart):
    """Keep the candidate with the highest reward."""

    def __init__(self, candidates: int) -> None:
        if not 1 <= candidates <= 64:
            raise SteerbenchError(f"best_of_n: n is {candidates}; it must be from 1 to 64.")
        self.candidates = candidates

    @property
    def sequence_kl(self) -> float:
        """Upper bound of KL(chosen || drawn), in nats."""
        return log(self.candidates) - (self.candidates - 1) / self.candidates

    def choose(self, dialogue: Dialogue, candidates: Sequence[str], reward: Reward) -> int:
        """Return the index of the first candidate with the highest reward."""
        return int(reward.score([dialogue] * len(candidates), candidates).argmax())


@dataclass(frozen=True, kw_only=True)
class BestOfN(Steerer):
    """The best of N responses by the guiding reward.

    - `n`: responses that are drawn, 1 to 64
    """

    off: ClassVar[Mapping[str, Any]] = {"n": 1}

    n: int = 4

    def fit(self, context: FitContext) -> Steering:
        """Nothing to learn."""
        return Steering(decode=Best(self.n))
