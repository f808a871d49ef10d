"""CARDS: draw a segment, keep it if the guide likes the text so far well enough, and draw it again if not.

Paper: Li et al. 2024, "Cascade Reward Sampling for Efficient Decoding-Time Alignment", arXiv 2406.16306.

    a segment ends before a token of entropy >= `entropy`, after 4 to 64 tokens
    tau(t) = r0 + (t / T) (r* - r0),   r0 = (1 - alpha) r(x) + alpha r*          t tokens so far, of at most T
    accept with probability min(1, exp((r(x, y_<=t) - tau(t)) / beta));  hard: if r(x, y_<=t) >= tau(t)

Semantic segments end where the model is uncertain what comes next. A text that fails is drawn again from where the
segment began. `entropy` beyond all that occurs gives rejection sampling of whole responses, 64 tokens at a time, and a
threshold below all rewards, or `tries=1`, the model itself.

Differences from the authors' code (lblaoke/CARDS @012cd83, without a licence):
- temperature and top-k are those of the run; theirs are 0.7, the same number as beta, and 40
- the reward is that of the text so far as the reward model reads a reply, and r(x) that of an empty one
- segments are tried `parallel` at a time, and the first that is accepted is kept, which gives the same law; after the
  last try the best of those of that time is kept, theirs is the best of all tries
- r* is published as 8.5 for one reward model; None is the mean reward of the rollouts and one standard deviation.

Defaults: as published otherwise: entropy 3.0 nats, alpha 0.5, beta 0.7 in units of the reward, 20 tries. Cost: one
response to each training prompt to fit, if r* is not given. `parallel` rows for each prompt on one cache, as many
scores of the reward model for each time, and one for the prompt.

Pitfalls: a model that is sure of itself never reaches 3 nats, as the testbed's: search `entropy`. The guide was not
trained on beginnings. Its KL is estimated from the number of tries, as if none were ever the last one.

Learns from: rollouts with rewards and reward at test time. Touches: choice of responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Blocks, Candidate, DecodePart, DecodingContext, rewards_of
from steerbench.learn import Count, NotNegative, Positive, Range, Share

LEAST, MOST = 4, 64
"""Tokens of a segment."""


class Accept(DecodePart):
    """Keep the first segment that is accepted; after the last try, the best one."""

    kl_is = "estimate"

    def __init__(  # noqa: PLR0913, PLR0917 - the paper's settings
        self,
        candidates: int,
        tries: int,
        entropy: float,
        target: float,
        alpha: float,
        beta: float,
        length: int,
        hard: bool,
    ) -> None:
        if not 1 <= candidates <= 64 or tries < 1 or beta <= 0 or not 0 <= alpha <= 1:
            raise SteerbenchError(
                f"cards: parallel={candidates} must be from 1 to 64, tries={tries} 1 or more, beta={beta} above 0, "
                f"alpha={alpha} from 0 to 1."
            )
        self.candidates, self.tries, self.entropy, self.target = min(candidates, tries), tries, entropy, target
        self.alpha, self.beta, self.length, self.hard = alpha, beta, length, hard

    @property
    def redraws(self) -> bool:
        """Whether there is more than one try."""
        return self.tries > 1

    @property
    def blocks(self) -> Blocks:
        """Segments end where it is uncertain what comes next."""
        return Blocks(tokens=MOST, entropy=self.entropy, least=LEAST)

    def choice_kl(self, draws: Sequence[int]) -> float:
        """Return an estimate of -log P(accept), summed over the segments, in nats.

        That is the KL of a hard choice, and an upper bound of a soft one. The sum of 1 / j below the number of the draw
        that was accepted is -log P on average.
        """
        return sum(sum(1 / j for j in range(1, n)) for n in draws)

    def select(self, context: DecodingContext, rows: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        """Return the first candidate of each prompt that is accepted, if there is one."""
        begun = context.reward.score(context.dialogues, [""] * len(rows))
        of_rows = zip(rows, rewards_of(context, rows), begun.tolist(), context.generators, strict=True)
        return [self._kept(row, rewards, start, generator) for row, rewards, start, generator in of_rows]

    def _kept(self, row: Sequence[Candidate], rewards: Tensor, start: float, generator: torch.Generator) -> list[int]:
        margins = rewards - torch.tensor([self._threshold(start, len(c.response.ids)) for c in row])
        odds = (margins >= 0).double() if self.hard else (margins.double() / self.beta).exp()
        accepted = (torch.rand(len(row), generator=generator, dtype=torch.float64) < odds).tolist()
        first = accepted.index(True) if True in accepted else None
        if first is None and (row[0].attempt + 1) * self.candidates < self.tries:
            return []
        return [int(rewards.argmax()) if first is None else first] * self.candidates

    def _threshold(self, start: float, tokens: int) -> float:
        begin = (1 - self.alpha) * start + self.alpha * self.target
        return min(begin + tokens / self.length * (self.target - begin), self.target)


@dataclass(frozen=True, kw_only=True)
class Cards(Steerer):
    """Segments of the response, drawn until the guide accepts them.

    - `tries`: draws of a segment; the last ones are taken in any case
    - `entropy`: of the next token, in nats, before which a segment ends
    - `reward_threshold`: r* that the end of a response has to reach, in units of the reward; None: one standard
      deviation above the mean of the rollouts
    - `alpha`: 1 asks for r* from the beginning, 0 for the reward of the prompt
    - `beta`: softness of the threshold, in units of the reward
    - `accept`: soft lets a text below the threshold pass by chance, hard never
    - `parallel`: draws that are made at once, 1 to 64
    """

    engines = ("transformers",)
    off: ClassVar[Mapping[str, Any]] = {"tries": 1}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "entropy": (0.5, 1.0, 2.0, 3.0),
        "alpha": (0.25, 0.5, 0.75, 1.0),
        "beta": (0.1, 0.35, 0.7, 1.4),
    }
    graded = False

    tries: Count = 20
    entropy: NotNegative = 3.0
    reward_threshold: float | None = None
    alpha: Share = 0.5
    beta: Positive = 0.7
    accept: Literal["soft", "hard"] = "soft"
    parallel: Annotated[int, Range(1, 64)] = 4

    def fit(self, context: FitContext) -> Steering:
        """Find the threshold in the rewards of the rollouts, if it is not given."""
        target = self.reward_threshold
        if target is None:
            rewards = [r.reward for r in context.rollouts()]
            if not rewards:
                raise SteerbenchError("cards: no rollout to find the threshold by; raise --n-train.")
            target = fmean(rewards) + pstdev(rewards)
        context.report.update(reward_threshold=target)
        length, hard = context.decoding.max_new_tokens, self.accept == "hard"
        return Steering(
            decode=Accept(self.parallel, self.tries, self.entropy, target, self.alpha, self.beta, length, hard)
        )
