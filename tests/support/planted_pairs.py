"""A model in which one direction makes good letters likely and bad ones unlikely, and pairs that differ by that."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from steerbench import FitContext, LanguageModel
from steerbench.contract import tiny
from steerbench.edits import PlacedEdit
from steerbench.learn import Pair, Tokens, Trial, log_probs
from steerbench.seeds import generator_for

GOOD, BAD = range(40, 60), range(60, 80)
"""Ids of the letters of preferred and of other replies."""


@dataclass(kw_only=True)
class Given(FitContext):
    """A context whose pairs are those given."""

    given: list[Pair] = field(default_factory=list)

    def pairs(self) -> list[Pair]:
        return self.given


class Planted(NamedTuple):
    """What was planted, and where a method is to find it."""

    context: Given
    residual: Tensor
    """The unit vector of the residual stream that the head reads, (width,)."""
    of_head: Tensor
    """The unit vector in z of the planted head that writes it, (d_head,)."""


def planted(seed: int, *, layer: int = 2, head: int = 2, pairs: int = 64) -> Planted:
    """Return a tiny model whose LM head reads a direction, which one attention head alone writes, and pairs of letters.

    Adam moves all parameters about equally far: the components of what is planted are all of one size.
    """
    lm = tiny.language_model("llama", seed)
    generator = generator_for(seed, "planted")
    u = normalize(torch.randn(tiny.WIDTH, generator=generator).sign(), dim=0)
    width = tiny.WIDTH // tiny.HEADS
    w = normalize(torch.randn(width, generator=generator).sign(), dim=0)
    model: Any = lm.model
    weight = model.lm_head.weight.data
    weight[list(GOOD)] += 3 * u
    weight[list(BAD)] -= 3 * u
    for block in model.model.layers:  # nothing else writes it
        for writer in (block.self_attn.o_proj.weight.data, block.mlp.down_proj.weight.data):
            writer.sub_(torch.outer(u, u @ writer))
    projection = model.model.layers[layer].self_attn.o_proj.weight.data
    projection[:, head * width : (head + 1) * width] += 3 * torch.outer(u, w)
    given = [Pair(*(Tokens((3, 100 + i), _letters(kind, generator)) for kind in (GOOD, BAD))) for i in range(pairs)]
    return Planted(Given(lm=lm, examples=[], reward=tiny.VowelReward(), seed=seed, given=given), u, w)


def _letters(kind: range, generator: torch.Generator) -> tuple[int, ...]:
    drawn = torch.randint(kind.start, kind.stop, (8,), generator=generator)
    return tuple(drawn.tolist())


def reply_log_prob(lm: LanguageModel, tokens: Tokens) -> Tensor:
    """Return the log-probability of a whole response, one token after the other, as the model stands."""
    ids = torch.tensor([tokens.prompt + tokens.response])
    logits = lm.model(input_ids=ids).logits[0].log_softmax(-1)
    start = len(tokens.prompt) - 1
    return torch.stack([logits[start + i, token] for i, token in enumerate(tokens.response)]).sum()


def trial_of(
    lm: LanguageModel, edits: Sequence[PlacedEdit], pairs: Sequence[Pair], generator: torch.Generator | None = None
) -> Trial:
    """Return what a loss is given for some pairs."""
    replies = [t for pair in pairs for t in pair]
    known = {t: float(x.sum()) for t, x in zip(replies, log_probs(lm, replies), strict=True)}
    return Trial(lm, edits, 3, generator, lambda: known)
