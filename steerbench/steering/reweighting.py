"""Re-weighting of tokens: log p(z) + beta * score(z), over all next tokens or over the most likely ones.

A part says what the score is. It sees a `Step`: rows that each wait for a next token. While decoding these are the rows
of the batch; where a given response is scored they are its tokens, all at once, so that a score costs one pass and not
one for each token. A part that only looks at the step gives the same in both.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from steerbench.steering.decoding_context import DecodingContext
from steerbench.steering.parts import LogitsPart, PlacedEdit, PromptPart
from steerbench.steering.step import Step


class Twin(NamedTuple):
    """The same model once more, behind another prompt or under other edits, reading the same response."""

    prompt: tuple[PromptPart, ...] = ()
    """Rewrite the dialogue, after the steering's own prompts."""
    edits: tuple[PlacedEdit, ...] | None = None
    """Act in place of the steering's own edits; None: those of the steering."""


class Reweighting(LogitsPart, ABC):
    """log p(z) + beta * score(z). At beta 0 nothing is asked and nothing changes."""

    beta: float
    """In nats per unit of the score."""
    top: int | None = None
    """How many of the most likely tokens are scored; None: all."""
    only: bool = False
    """Whether one of these is taken. If not, they keep the probability that they have together."""

    reads_states: bool = False
    """Whether the score looks at states: then those of each decoding step are kept at hand."""
    looks_ahead: bool = False
    """Whether it looks at states behind the next tokens, which takes another pass: for the least that it costs."""

    @abstractmethod
    def score(self, step: Step, tokens: Tensor) -> Tensor:
        """Return the score of each token, (rows, k); `tokens` are (rows, k): the top ones, or all."""

    @property
    def twin(self) -> Twin | None:
        """The twin that it asks for, which decoding then runs in the same pass."""
        return None

    def reweighted(self, step: Step) -> Tensor:
        """Return the new logits of a step, (rows, vocabulary)."""
        logits = step.logits
        if not self.beta:
            return logits
        size = logits.shape[-1]
        if self.top is None or self.top >= size:
            tokens = torch.arange(size, device=logits.device).expand(len(logits), -1)
            return _allowed(logits, logits + self.beta * self.score(step, tokens).to(logits))
        before, tokens = logits.topk(self.top, dim=-1)
        after = _allowed(before, before + self.beta * self.score(step, tokens).to(logits))
        if self.only:
            return torch.full_like(logits, -torch.inf).scatter(-1, tokens, after)
        kept = before.logsumexp(-1, keepdim=True) - after.logsumexp(-1, keepdim=True)
        return logits.scatter(-1, tokens, after + kept)

    def processor_in(self, context: DecodingContext) -> LogitsProcessor:
        """Return a processor that re-weights each step."""
        return _Reweighted(self, context)


def follows(part: LogitsPart) -> bool:
    """Tell whether a part can go on with some rows of a batch: one that only looks at its step keeps nothing itself."""
    return isinstance(part, Reweighting) and type(part).processor_in is Reweighting.processor_in


def _allowed(before: Tensor, after: Tensor) -> Tensor:
    """Return the new logits, but for tokens that were forbidden: no score lets them in."""
    return after.masked_fill(before == -torch.inf, -torch.inf)


class _Reweighted(LogitsProcessor):
    def __init__(self, part: Reweighting, context: DecodingContext) -> None:
        self._part, self._context = part, context

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._part.reweighted(self._context.step(input_ids, scores)) if self._part.beta else scores
