"""Blocks of a response: where they end, and the candidates that they are chosen among."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerbench.errors import SteerbenchError
from steerbench.models.response import Response

if TYPE_CHECKING:
    from steerbench.steering.decoding_context import DecodingContext


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Where a block ends: at whichever of these comes first, and with the response. By default, only with it."""

    tokens: int | None = None
    """After so many tokens."""
    entropy: float | None = None
    """Before a token whose distribution has at least this entropy, in nats; before temperature, top-k and top-p."""
    sentence: bool = False
    """Behind a token that ends with `.`, `!` or `?`."""
    least: int = 1
    """Tokens that a block has before entropy or a sentence may end it."""
    lookahead: int = 0
    """Tokens that are drawn behind a block for its candidates to be judged by, and then dropped."""
    top: bool = False
    """Whether candidates that continue one and the same begin with its most likely tokens, one with each, instead of
    tokens that are drawn. They know their `log_prob` then."""

    def __post_init__(self) -> None:
        if min(self.least, self.least if self.tokens is None else self.tokens) < 1:
            raise SteerbenchError(f"a block has 1 token or more, not {self.tokens}, and at least {self.least}.")
        if self.lookahead < 0:
            raise SteerbenchError(f"lookahead={self.lookahead} is no number of tokens; give 0 or more.")

    @property
    def ragged(self) -> bool:
        """Whether blocks that begin together may differ in length though nothing ends in them."""
        return self.entropy is not None or self.sentence


@dataclass(frozen=True)
class Candidate:
    """A response so far: what was kept, and one more block."""

    response: Response
    """Cut as every response is; its text is what a reward can read."""
    finished: bool
    """Whether nothing can follow: it has its end token, a hallucinated turn, or all the tokens that it may have."""
    state: Tensor | None = None
    """(width,), float32, at the site that the part names: where the next token would be drawn from, or where its last
    one was drawn from if it is finished."""
    attempt: int = 0
    """How often the block was drawn before and not taken."""
    ahead: Response | None = None
    """The response with what was drawn behind the block; None without lookahead."""
    log_prob: float | None = None
    """Of the tokens up to the end of the block, by what they are drawn from before temperature, top-k and top-p; None
    where blocks do not begin with the most likely tokens."""

    @property
    def text(self) -> str:
        """What a reward reads: the response so far, and what was drawn behind the block."""
        return (self.ahead or self.response).text


def rewards_of(context: "DecodingContext", rows: Sequence[Sequence[Candidate]]) -> list[Tensor]:
    """Return the guide's reward of the candidates of each prompt, (candidates,) float32 each, from one call."""
    dialogues = [d for d, row in zip(context.dialogues, rows, strict=True) for _ in row]
    scores = context.reward.score(dialogues, [c.text for row in rows for c in row])
    return list(torch.split(scores, [len(row) for row in rows]))


def pick(logits: Tensor, generator: torch.Generator) -> int:
    """Return an index drawn with odds exp(logits), of (n,)."""
    return int(torch.multinomial(logits.double().cpu().softmax(0), 1, generator=generator))


def bound_of(draws: Sequence[int]) -> float:
    """Return an upper bound of KL(chosen || drawn) after choices among so many candidates each, drawn alike, in nats.

    It is log n - (n - 1) / n for each choice, the KL of the best of n where no two are equal (Beirami et al. 2024,
    arXiv 2401.01879). It holds for any choice: none among n that are drawn alike concentrates more (Border 1991), a
    random choice is a best one of candidates with noise, and choices one after another add up.
    """
    return sum(log(n) - (n - 1) / n for n in draws)
