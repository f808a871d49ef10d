"""A key-value cache with room for some more columns: a token is written into it, and what is there stays where it is.

That of transformers copies all of its keys and values at every token, which on a CPU can take as long as the attention.
"""

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 16
"""Columns of room. Attention is slower over what is further apart, so that much more is no gain."""


def growing_cache() -> DynamicCache:
    """Return an empty cache, of which every layer keeps all columns."""
    # without the configuration: a window that has moved on could not go back
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache


class GrowingLayer(DynamicLayer):
    """Keys and values of a layer, (rows, heads, columns, width): views of larger tensors, or tensors put there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rooms: list[Tensor | None] = [None, None]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns, and return all."""
        if self.get_seq_length() == 0 or key_states.requires_grad:
            keys, values = super().update(key_states, value_states, *args, **kwargs)
            return keys, values
        old: tuple[Tensor, Tensor] = self.keys, self.values  # type: ignore[has-type]
        self.keys, self.values = self._extended(0, old[0], key_states), self._extended(1, old[1], value_states)
        return self.keys, self.values

    def _extended(self, which: int, kept: Tensor, new: Tensor) -> Tensor:
        width, more, room = kept.shape[2], new.shape[2], self._rooms[which]
        end = None if room is None else _end_in(room, kept)
        if room is None or end is None or end + more > room.shape[2]:
            room = self._rooms[which] = kept.new_empty(*kept.shape[:2], width + more + ROOM, kept.shape[3])
            room[:, :, :width] = kept
            end = width
        room[:, :, end : end + more] = new
        return room[:, :, end - width : end + more]


def _end_in(room: Tensor, kept: Tensor) -> int | None:
    """Return the column of a room behind what is kept; None where that is not in it."""
    shared = kept.untyped_storage().data_ptr() == room.untyped_storage().data_ptr()
    if not shared or kept.shape[:2] != room.shape[:2] or kept.stride() != room.stride():
        return None
    first, rest = divmod(int(kept.storage_offset()), room.shape[3])
    return None if rest or first + kept.shape[2] > room.shape[2] else first + kept.shape[2]
