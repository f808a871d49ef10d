"""How a token is drawn: temperature, top-k, top-p, and a generator of its own for each row."""

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from steerbench.decoding import Decoding


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
