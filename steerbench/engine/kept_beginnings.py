"""Beginnings of texts, read once: the keys and values of a model for them, behind which passes begin.

Each is read by itself, so that what is kept does not depend on what it is batched with.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from steerbench.engine.forward_passes import CACHE, run
from steerbench.engine.growing_cache import growing_cache
from steerbench.models.batching import is_out_of_memory
from steerbench.models.modes import evaluating
from steerbench.models.pieces import kept_size

Ids = tuple[int, ...]
KeysAndValues = dict[int, tuple[Tensor, Tensor]]
"""By layer, (heads, tokens, width) each."""
LIMIT = 2**30
"""Bytes that are kept at most."""


class KeptBeginnings:
    """Keys and values of token ids, those asked for last, as many as there is room for."""

    def __init__(self, model: PreTrainedModel, limit: int = LIMIT) -> None:
        self._model, self._limit, self._size = model, limit, kept_size(model)
        self._known: OrderedDict[Ids, KeysAndValues] = OrderedDict()

    def ready(self, beginnings: Iterable[Ids]) -> bool:
        """Read those that are not known yet; tell whether there is room for all of these at once.

        Nothing may be installed in the model that edits them. Where the memory runs out, none are kept from then on.
        """
        wanted = set(beginnings)
        if self._bytes(wanted) > self._limit:
            return False
        try:
            for ids in sorted(wanted):
                if ids not in self._known:
                    self._known[ids] = self._read(ids)
                self._known.move_to_end(ids)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._known.clear()  # passes need the memory more
            self._limit = 0
            return False
        while self._bytes(self._known) > self._limit:
            self._known.popitem(last=False)
        return True

    def in_front(self, beginnings: Sequence[Ids]) -> DynamicCache:
        """Return a cache of a row for each, all ready, which end in its last column; zeros in front of shorter ones."""
        cache, columns = growing_cache(), max(map(len, beginnings))
        kept = [self._known[ids] for ids in beginnings]
        for layer, pair in max(kept, key=len).items():
            rows = [[one[layer][which] if one else None for one in kept] for which in (0, 1)]
            zeros = [t.new_zeros(len(kept), t.shape[0], columns, t.shape[2]) for t in pair]
            cache.update(_ending(rows[0], zeros[0]), _ending(rows[1], zeros[1]), layer)
        return cache

    def _bytes(self, beginnings: Iterable[Ids]) -> int:
        return sum(map(len, beginnings)) * self._size

    @torch.no_grad()
    def _read(self, ids: Ids) -> KeysAndValues:
        if not ids:
            return {}
        cache, row = growing_cache(), torch.tensor([ids], device=self._model.device)
        with evaluating(self._model):
            run(self._model, row, torch.ones_like(row), **{CACHE: cache, "use_cache": True, "logits_to_keep": 1})
        layers = enumerate(cache.layers)
        return {i: (layer.keys[0].clone(), layer.values[0].clone()) for i, layer in layers if layer.is_initialized}


def _ending(rows: Sequence[Tensor | None], zeros: Tensor) -> Tensor:
    """Write rows, (heads, tokens, width) each, into zeros, (rows, heads, columns, width), up to the last column."""
    for place, row in zip(zeros, rows, strict=True):
        if row is not None:
            place[:, zeros.shape[2] - row.shape[1] :] = row
    return zeros
