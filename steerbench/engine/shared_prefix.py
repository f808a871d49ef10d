"""The beginning that all prompts of a call share: read once, and repeated for the rows of every batch.

Columns stay what they are: its keys and values are put where they would be if each row had read them itself. A key
knows the position in its row, and no column, so that rows behind padding of any width can have the same.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from transformers import DynamicCache

from steerbench.engine.forward_passes import CACHE, places, run
from steerbench.engine.growing_cache import growing_cache
from steerbench.engine.positions import Rearrangement
from steerbench.models.language_model import Batch, LanguageModel, Tokens
from steerbench.models.modes import evaluating
from steerbench.steering.parts import Edit, PlacedEdit
from steerbench.steering.steering import Steering

LEAST = 16
"""Tokens that a beginning has at least."""
SHARE = 0.4
"""Of what would be read without it, how much it spares at least: a third was no gain on a CPU, two fifths a tenth."""


class Beginning(Protocol):
    """What is known of prompts before they are read."""

    def in_front(self, batch: Batch) -> DynamicCache:
        """Return a cache of the first columns of left-padded prompts, of all but the last one at most."""


class SharedPrefix:
    """Keys and values of ids that all prompts begin with."""

    @torch.no_grad()
    def __init__(self, lm: LanguageModel, ids: Sequence[int]) -> None:
        """Read them; nothing may be installed that edits them."""
        self._cache, self._length = growing_cache(), len(ids)
        row = torch.tensor([list(ids)], device=lm.device)
        mask = torch.ones_like(row)
        chosen = {"position_ids": places(mask), CACHE: self._cache, "use_cache": True, "logits_to_keep": 1}
        with evaluating(lm.model):
            run(lm.model, row, mask, **chosen)

    def in_front(self, batch: Batch) -> DynamicCache:
        """Return a cache of the first columns of left-padded prompts.

        It has as many columns as the ids in the row that begins first. Of other rows it lacks some of the ids, which
        are to be read with what follows; the last column always is.
        """
        mask = batch.attention_mask
        columns, padding = min(self._length, mask.shape[1] - 1), mask.shape[1] - mask.sum(1)
        plain = not bool(padding.any())
        change = Rearrangement(torch.zeros_like(padding), padding, columns, plain, old_rows=1)
        cache = growing_cache()
        for i, layer in enumerate(self._cache.layers):
            if layer.is_initialized:
                cache.update(change.of_cache(layer.keys), change.of_cache(layer.values), i)
        return cache


def shared_ids(steering: Steering, tokens: Collection[Tokens]) -> tuple[int, ...]:
    """Return the ids that prompts share, as far as the steering leaves them alone; none where that would not pay."""
    return _worth_sharing({one.prompt for one in tokens}) if generates_behind(steering) else ()


def generates_behind(steering: Steering) -> bool:
    """Tell whether what a steering generates can begin behind what is known of the prompts."""
    return not steering.logits and leave_prompts(steering.edits)


def leave_prompts(edits: Sequence[PlacedEdit]) -> bool:
    """Tell whether edits neither touch nor read a prompt, but for its last position."""
    reads = any(placed.gate is not None or type(placed.edit).start is not Edit.start for placed in edits)
    return not reads and all(placed.scope == "response" for placed in edits)


def _worth_sharing(prompts: Collection[tuple[int, ...]]) -> tuple[int, ...]:
    """Return what different prompts all begin with; none of it where reading it once spares too little."""
    if not prompts:
        return ()
    first, last = min(prompts), max(prompts)  # what these two begin with, all between them do
    differ = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    n = next(differ, len(first))
    spared, read = n * (len(prompts) - 1), sum(map(len, prompts))
    return first[:n] if n >= LEAST and spared >= SHARE * read else ()
