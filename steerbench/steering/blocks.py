"""Blocks of a response: where they end, and the candidates that they are chosen among."""

from dataclasses import dataclass

from torch import Tensor

from steerbench.errors import SteerbenchError
from steerbench.models.response import Response


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

    def __post_init__(self) -> None:
        if min(self.least, self.least if self.tokens is None else self.tokens) < 1:
            raise SteerbenchError(f"a block has 1 token or more, not {self.tokens}, and at least {self.least}.")

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
