"""ITI as its tests fit it, and what a fit adds to each head."""

from typing import Any

from torch import Tensor

from steerbench import Decoding, Example, FitContext, LanguageModel, Steerer, Steering, load
from steerbench.contract import tiny
from steerbench.edits import Add
from steerbench.learn import Pair

EXAMPLES = tiny.examples()[:16]
HEADS = tiny.HEADS
WHOLE = Decoding(max_new_tokens=128)
"""No reply is cut."""


def context(lm: LanguageModel, examples: list[Example] | None = None, **settings: Any) -> FitContext:
    given: dict[str, Any] = {"decoding": WHOLE, "reward": tiny.VowelReward()}
    return FitContext(lm=lm, examples=EXAMPLES if examples is None else examples, **(given | settings))


def iti(**fields: Any) -> Steerer:
    return load("methods", "iti")(**fields)


def vectors(steering: Steering) -> dict[int, Tensor]:
    """Layer -> strength * vector, by head: (heads, d_head)."""
    found = {}
    for placed in steering.edits:
        assert isinstance(placed.edit, Add)
        assert placed.site.name == "z"
        assert placed.site.layer is not None
        found[placed.site.layer] = (placed.edit.strength * placed.edit.vector).reshape(HEADS, -1)
    return found


def pairs_of(lm: LanguageModel, examples: list[Example]) -> list[Pair]:
    return context(lm, examples).pairs()
