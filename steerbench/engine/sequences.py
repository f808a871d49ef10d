"""Sequences under way: token by token on one cache, which can be repeated, cut and reordered row by row."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from steerbench.engine.forward_passes import CACHE, arguments, places, run
from steerbench.engine.growing_cache import growing_cache
from steerbench.engine.hooks import watched
from steerbench.engine.positions import Positions, Rearrangement, Replacement
from steerbench.engine.shared_prefix import Beginning
from steerbench.models.language_model import Batch
from steerbench.models.sites import Place


def can_repeat(model: PreTrainedModel) -> bool:
    """Tell whether all that the model keeps of a sequence are keys and values by column.

    Hybrids keep states of recurrent layers and convolutions besides, of which nothing can be cut off. xLSTM and RWKV
    keep those alone, in a cache of another kind under the same name.
    """
    if model._is_stateful or not {CACHE, "use_cache"} <= arguments(model):
        return False
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    return all(type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in layers)


class Sequences:
    """Rows of left-padded ids that all end in the last column, and what the model says comes next.

    A row takes one token at a time. `keep` makes other rows of those there are; padding that none of them needs goes
    if they are to be trimmed.
    """

    ids: Tensor
    """(rows, columns)."""
    mask: Tensor
    """(rows, columns): 1 where the row is, 0 in the padding before it."""
    logits: Tensor
    """Of the next token, (rows, vocabulary), float32."""
    states: Tensor | None = None
    """Where the next token is drawn from, (rows, width), float32; None without a place."""

    ends: list[int]
    """The column after each row's prompt."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Batch,
        positions: Positions,
        place: Place | None = None,
        *,
        cached: bool,
        trim: bool,
        prefix: Beginning | None = None,
    ) -> None:
        """Read the prompts: all of them, or what stands behind a `prefix` of theirs."""
        self.ids, self.mask = prompts.input_ids, prompts.attention_mask
        self.ends = prompts.prompt_ends
        self._model, self._positions, self._place, self._trim = model, positions, place, trim
        self._cache = (prefix.in_front(prompts) if prefix else growing_cache()) if cached else None
        known = 0 if self._cache is None else self._cache.get_seq_length()
        positions.begin_behind(known)
        self._pass(self.ids[:, known:])

    def extend(self, tokens: Tensor, real: Tensor | None = None) -> None:
        """Append a token to each row, (rows,), and find out what comes next.

        `real` (rows,), 1 or 0, says which rows go on. What else takes part does not move on in its text, whose end may
        be that of the context.
        """
        new = tokens[:, None]
        self.ids = torch.cat([self.ids, new], dim=1)
        column = torch.ones_like(new) if real is None else real[:, None]
        self.mask = torch.cat([self.mask, column], dim=1)
        self._pass(self.ids if self._cache is None else new)

    def keep(
        self,
        rows: Sequence[int],
        stops: Sequence[int] | None = None,
        logits: Tensor | None = None,
        states: Tensor | None = None,
    ) -> None:
        """Go on with copies of rows; where `stops` are given, with the columns in front of them alone.

        What comes next there has to be given, too: `logits`, and `states` if there is a place.
        """
        change = Rearrangement.of(rows, stops or [self.ids.shape[1]] * len(rows), self.mask, trim=self._trim)
        self.ids, self.mask = change.of_columns(self.ids), change.of_columns(self.mask)
        self.logits = self.logits[change.rows] if logits is None else logits
        self.states = self.states[change.rows] if states is None and self.states is not None else states
        self.ends = [self.ends[row] + shift for row, shift in zip(rows, change.shifts.tolist(), strict=True)]
        self._positions.rearrange(change, self.mask)
        for layer in self._layers():
            layer.keys, layer.values = change.of_cache(layer.keys), change.of_cache(layer.values)

    def replaceable(self, others: "Sequences") -> bool:
        """Tell whether rows can make room for those of others."""
        return self._positions.replaceable(others._positions)

    def replace(self, places: Sequence[int], others: "Sequences", rows: Sequence[int]) -> None:
        """Put copies of some rows of others at the places of rows that end here; all others go on.

        Padding that none of them needs goes. What comes next is known of the new rows, and of the others as before.
        """
        padding, others_padding = (one.mask.argmax(1).tolist() for one in (self, others))
        kept = [self.ids.shape[1] - left for row, left in enumerate(padding) if row not in set(places)]
        width = max(kept + [others.ids.shape[1] - others_padding[row] for row in rows])
        at, of = (torch.tensor(list(some), device=self.ids.device) for some in (places, rows))
        change = Replacement(at, of, width, self.ids.shape[1], others.ids.shape[1])
        self.ids, self.mask = (change.of_columns(*pair) for pair in ((self.ids, others.ids), (self.mask, others.mask)))
        self.logits = change.of_rows(self.logits, others.logits)
        self._positions.replace(change, others._positions, self.mask)
        self.ends = self._positions.ends[:, 0].tolist()
        for layer, other in zip(self._layers(), others._layers(), strict=True):
            layer.keys = change.of_cache(layer.keys, other.keys)
            layer.values = change.of_cache(layer.values, other.values)

    @property
    def movable(self) -> bool:
        """Whether all that is kept of the rows can follow them."""
        return self._positions.movable

    def _layers(self) -> list[Any]:
        """Return what the cache holds of each layer that keeps something."""
        return [] if self._cache is None else [layer for layer in self._cache.layers if layer.is_initialized]

    def _pass(self, ids: Tensor) -> None:
        chosen = {
            "position_ids": places(self.mask)[:, -ids.shape[1] :],
            CACHE: self._cache,
            "use_cache": self._cache is not None,
            "logits_to_keep": 1,
        }
        with watched(self._place, self._read) if self._place else nullcontext():
            out = run(self._model, ids, self.mask, **chosen)
        self.logits = out.logits[:, -1].to(dtype=torch.float32, device=self.ids.device, copy=True)

    def _read(self, activation: Tensor) -> None:
        last = activation.reshape(len(self.ids), -1, activation.shape[-1])[:, -1]
        self.states = last.to(dtype=torch.float32, device=self.ids.device, copy=True)
