"""Draws in vLLM as transformers' are drawn: by the same numbers, from the same distribution.

vLLM takes the likeliest token; this leaves one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from steerbench.decoding import Decoding
from steerbench.engine.sampling import drawn, uniforms, warpers


class _Row(NamedTuple):
    """A sequence that draws."""

    numbers: Tensor
    """What its tokens are drawn by, one after another, (tokens,), float64."""
    decoding: Decoding
    taken: list[int]
    """Its tokens so far, which vLLM adds to."""


class SameDraws(LogitsProcessor):
    """Leaves to each sequence that draws just the token that it draws."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """It is not: the token that is drawn is left."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the sequences as they come, go and change places."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _, taken in batch_update.added:
            self._rows.pop(index, None)
            if "seed" in (given := params.extra_args or {}):
                decoding = Decoding(**given["decoding"])
                generator = torch.Generator().manual_seed(given["seed"])
                self._rows[index] = _Row(uniforms(generator, decoding.max_new_tokens), decoding, taken)
        for source, target, direction in batch_update.moved:
            moved, other = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if other is not None and direction == MoveDirectionality.SWAP:
                self._rows[source] = other

    def apply(self, logits: Tensor) -> Tensor:
        """Return logits, (sequences, vocabulary), that are -inf but at the token drawn."""
        groups: dict[Decoding, list[int]] = {}
        for index, row in self._rows.items():
            if index < len(logits):
                groups.setdefault(row.decoding, []).append(index)
        for decoding, rows in groups.items():
            scores = logits[rows]
            for warper in warpers(decoding):
                scores = warper(None, scores)  # none of these looks at the ids
            numbers = torch.stack([self._rows[i].numbers[len(self._rows[i].taken)] for i in rows])
            tokens = drawn(scores, numbers)
            left = torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)
            logits[rows] = left
        return logits
