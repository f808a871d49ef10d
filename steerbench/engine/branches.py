"""States behind several next tokens at once: candidates that share a cache, each blind to the others.

They are columns of one pass behind the cached ones, under a mask that shows to each the columns of its own prefix and
itself, at the position that it would have. So k candidates of a row, or the candidates of all prefixes of a response,
cost one short pass, and no copy of the cache.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from steerbench.engine.forward_passes import CACHE, arguments, final_states, left_cache, places
from steerbench.engine.sequences import can_repeat
from steerbench.models.language_model import LanguageModel
from steerbench.models.modes import evaluating

_WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
_tried: "WeakKeyDictionary[PreTrainedModel, dict[torch.dtype, bool]]" = WeakKeyDictionary()


def states_behind(lm: LanguageModel, cache: Any, mask: Tensor, tokens: Tensor, stops: Tensor) -> Tensor:
    """Return the state at `final` of each candidate, (rows, n, width), float32; the cache is left as it was.

    `mask` (rows, columns) says which cached columns are real, `tokens` (rows, n) are the candidates, and `stops`
    (rows, n) the column at which each would stand: it sees those before it.
    """
    columns, n = mask.shape[1], tokens.shape[1]
    seen = (torch.arange(columns, device=mask.device) < stops[..., None]) & mask.bool()[:, None]
    alone = torch.eye(n, dtype=torch.bool, device=mask.device).expand(len(tokens), -1, -1)
    visible = torch.cat([seen, alone], dim=2)[:, None]  # (rows, 1, n, columns + n)
    dtype = lm.dtype
    hidden = torch.zeros(visible.shape, dtype=dtype, device=mask.device)
    hidden = hidden.masked_fill(~visible, torch.finfo(dtype).min)
    states, _ = final_states(lm, tokens, hidden, position_ids=seen.sum(2), use_cache=True, **{CACHE: cache})
    cache.crop(-n)
    return states


def can_branch(lm: LanguageModel) -> bool:
    """Tell whether `states_behind` gives what single passes give. Tried out once for each model and data type."""
    known = _tried.setdefault(lm.model, {})
    if lm.dtype not in known:
        known[lm.dtype] = keeps_columns(lm.model) and _agrees(lm)
    return known[lm.dtype]


def keeps_columns(model: PreTrainedModel) -> bool:
    """Tell whether all of the past is keys and values by column, which every column behind them may see."""
    config = model.config.get_text_config(decoder=True)
    if not can_repeat(model) or "position_ids" not in arguments(model):
        return False
    layers = DynamicCache(config=config).layers
    return all(type(layer) is DynamicLayer for layer in layers) and not any(
        getattr(config, name, None) for name in _WINDOWS
    )


@torch.no_grad()
def _agrees(lm: LanguageModel) -> bool:
    """Compare both ways on two short rows, one of them padded, with candidates at different depths."""
    ids = torch.arange(12, device=lm.device).reshape(2, 6) % 7 + 3
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    tokens, stops = ids[:, :3] + 1, torch.tensor([[6, 6, 4]] * 2, device=lm.device)
    try:
        with evaluating(lm.model):
            _, out = final_states(lm, ids, mask, position_ids=places(mask), use_cache=True)
            found = states_behind(lm, left_cache(out), mask, tokens, stops)
            single = [_single(lm, ids, mask, tokens[:, i], int(stops[0, i])) for i in range(3)]
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError):
        return False
    wanted = torch.stack(single, dim=1)
    return bool((found - wanted).abs().max() <= torch.finfo(lm.dtype).eps ** 0.5 * wanted.abs().max())


def _single(lm: LanguageModel, ids: Tensor, mask: Tensor, token: Tensor, stop: int) -> Tensor:
    rows = torch.cat([ids[:, :stop], token[:, None]], dim=1)
    real = torch.cat([mask[:, :stop], torch.ones_like(token)[:, None]], dim=1)
    states, _ = final_states(lm, rows, real, position_ids=places(real), use_cache=False)
    return states[:, -1]
