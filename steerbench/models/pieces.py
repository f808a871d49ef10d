"""How much goes into one pass of a model: as many rows as pay, and as the memory holds."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

BatchSize = int | Literal["auto"]
"""Rows at once; `auto` is `automatic`."""
PIECE = 8 * 2**20
"""Bytes of the largest tensor of a pass on a CPU, unless a single row has more."""
_INNER = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
"""What families call the width of their feed-forward parts."""
_CPU, _LEAST, _MOST = 32, 8, 256


def automatic(model: Any, columns: int) -> int:
    """Return how many rows of so many columns to take at once, where nobody says.

    32 on a CPU, which takes them in pieces. On a GPU a power of two from 8 to 256, whose cache and logits fill at most
    half of the memory that is free.
    """
    device = torch.device(model.device)
    if device.type != "cuda":
        return _CPU
    of_row = columns * (kept_size(model) + 3 * logits_size(model))  # in float32 as well
    fitting = max(1, int(torch.cuda.mem_get_info(device)[0]) // 2 // of_row)
    return max(_LEAST, min(_MOST, 1 << (fitting.bit_length() - 1)))


def in_one_piece(rows: int, size: int, device: torch.device) -> int:
    """Return how many of `rows` go into one pass, of which each has a largest tensor of `size` bytes; at least 1.

    Any on a GPU. On a CPU a large tensor is no gain: memory that was given back comes again page by page.
    """
    return rows if device.type != "cpu" else max(1, min(rows, PIECE // max(size, 1)))


def by_length(lengths: Sequence[int], batch_size: int, size: int, device: torch.device) -> Iterator[list[int]]:
    """Yield batches of indices, longest first: little padding, and a batch too large for the memory fails at once.

    `size` is that of the largest tensor of a pass, in bytes per token; see `in_one_piece`.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        rows = in_one_piece(batch_size, size * lengths[order[start]], device)
        yield order[start : start + rows]
        start += rows


def inner_size(model: Any) -> int:
    """Return the bytes per token of the largest tensor inside of a decoder or encoder, but for its logits."""
    config = model.config.get_text_config(decoder=True)
    return max(_largest(config, name) for name in (*_INNER, "hidden_size")) * int(model.dtype.itemsize)


def logits_size(model: Any) -> int:
    """Return the bytes per token of the largest tensor of a pass of a language model that gives logits."""
    return max(inner_size(model), len(model.get_input_embeddings().weight) * int(model.dtype.itemsize))


def cache_size(model: Any) -> int:
    """Return the bytes per token of the keys of one layer, or more where heads share them and nothing says so."""
    config = model.config.get_text_config(decoder=True)
    heads = _largest(config, "num_attention_heads") or 1
    of_head = _largest(config, "head_dim") or _largest(config, "hidden_size") // heads
    kept = _largest(config, "num_key_value_heads") or heads
    return kept * of_head * int(model.dtype.itemsize)


def kept_size(model: Any) -> int:
    """Return the bytes per token of the keys and values of all layers, at most."""
    layers = int(getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 1))
    return 2 * layers * cache_size(model)


def _largest(config: Any, name: str) -> int:
    """Return the largest number that a configuration has under a name, 0 where it has none.

    Where layers differ, some have a list, as Gemma 3n; of others, as Gemma 4, transformers answers layer by layer.
    """
    differs = name in (getattr(config, "per_layer_attributes", None) or ())
    found = [getattr(each, name, None) for each in (config.per_layer_config if differs else [config])]
    numbers = [n for value in found for n in (value if isinstance(value, list) else [value])]
    return max((n for n in numbers if isinstance(n, int)), default=0)
