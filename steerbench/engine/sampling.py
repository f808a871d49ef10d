"""How a token is drawn: temperature, top-k, top-p, and a generator of its own for each row."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from steerbench.decoding import Decoding


def sampling(decoding: Decoding, generators: Sequence[torch.Generator]) -> list[LogitsProcessor]:
    """Return the logits processors of a decoding: none where it is greedy; `generators` has one for each row."""
    return [*warpers(decoding), _Draw(generators)] if decoding.temperature else []


def warpers(decoding: Decoding) -> list[LogitsProcessor]:
    """Return the logits processors that make the distribution to draw from: temperature, top-k, top-p."""
    if decoding.temperature == 0:
        return []
    processors: list[LogitsProcessor] = [TemperatureLogitsWarper(float(decoding.temperature))]
    if decoding.top_k:
        processors.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        processors.append(TopPLogitsWarper(decoding.top_p))
    return processors


def uniforms(generator: torch.Generator, count: int) -> Tensor:
    """Return what a row's first `count` tokens are drawn by, (count,), float64 on the CPU: one number after another."""
    return torch.rand(count, generator=generator, dtype=torch.float64)


def drawn(scores: Tensor, numbers: Tensor) -> Tensor:
    """Return the token that each row draws, (rows,), by a number from 0 to 1 each, (rows,); `scores` are log-odds."""
    cumulative = scores.double().softmax(-1).cumsum(-1)
    target = numbers.to(scores.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).clamp(max=scores.shape[-1] - 1)[:, 0]


class _Draw(LogitsProcessor):
    """Draws each row's token with its own generator and leaves it as the only choice for the greedy search."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = drawn(scores, torch.cat([uniforms(g, 1) for g in self._generators]))
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen[:, None], 0.0)
