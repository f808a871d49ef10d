"""The prompts of a study: read once, and kept for every method and trial that leaves them alone.

Each is read by itself, so that what is kept does not depend on what it is batched with.
"""

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import DynamicCache

from steerbench.engine.continuation import can_share
from steerbench.engine.forward_passes import CACHE, run
from steerbench.engine.growing_cache import growing_cache
from steerbench.models.language_model import Batch, LanguageModel
from steerbench.models.modes import evaluating
from steerbench.models.pieces import kept_size

Prompt = tuple[int, ...]
KeysAndValues = dict[int, tuple[Tensor, Tensor]]
"""By layer, (heads, tokens, width) each: of all tokens of a prompt but the last one, from which a reply is drawn."""
LIMIT = 2**30
"""Bytes that are kept at most."""


class KeptPrompts:
    """Keys and values of prompts, those asked for last, as many as there is room for."""

    def __init__(self, lm: LanguageModel, limit: int = LIMIT) -> None:
        self._lm, self._limit = lm, limit
        self._known: OrderedDict[Prompt, KeysAndValues] = OrderedDict()

    def ready(self, prompts: Iterable[Prompt]) -> bool:
        """Tell whether passes can begin behind these prompts, and read those that are not known yet.

        Not where there is no room for all of them, nor with a model whose cache is no place to begin behind. Nothing
        may be installed that edits them.
        """
        wanted = set(prompts)
        if self._size(wanted) > self._limit or not can_share(self._lm):
            return False
        for prompt in sorted(wanted):
            if prompt not in self._known:
                self._known[prompt] = self._read(prompt)
            self._known.move_to_end(prompt)
        while self._size(self._known) > self._limit:
            self._known.popitem(last=False)
        return True

    def in_front(self, batch: Batch) -> DynamicCache:
        """Return a cache of all columns but the last one of left-padded prompts, all of which are ready."""
        rows = zip(batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True)
        prompts = [tuple(i for i, real in zip(ids, mask, strict=True) if real) for ids, mask in rows]
        columns, cache = batch.input_ids.shape[1] - 1, growing_cache()
        kept = [self._known[prompt] for prompt in prompts]
        for layer in kept[0] if columns else ():
            keys, values = (_padded([one[layer][which] for one in kept], columns) for which in (0, 1))
            cache.update(keys, values, layer)
        return cache

    def _size(self, prompts: Iterable[Prompt]) -> int:
        return sum(map(len, prompts)) * kept_size(self._lm.model)

    @torch.no_grad()
    def _read(self, prompt: Prompt) -> KeysAndValues:
        cache, row = growing_cache(), torch.tensor([prompt[:-1]], device=self._lm.device)
        if row.shape[1]:
            with evaluating(self._lm.model):
                chosen = {CACHE: cache, "use_cache": True, "logits_to_keep": 1}
                run(self._lm.model, row, torch.ones_like(row), **chosen)
        layers = enumerate(cache.layers)
        return {i: (layer.keys[0].clone(), layer.values[0].clone()) for i, layer in layers if layer.is_initialized}


def _padded(rows: list[Tensor], columns: int) -> Tensor:
    """Return rows, (heads, tokens, width) each, that end in the last of some columns: what is masked is a number."""
    heads, _, width = rows[0].shape
    whole = rows[0].new_zeros(len(rows), heads, columns, width)
    for place, row in zip(whole, rows, strict=True):
        place[:, columns - row.shape[1] :] = row
    return whole
