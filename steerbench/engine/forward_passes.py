"""One forward pass over rows of ids, with what the family takes besides them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from steerbench.engine.hooks import watched
from steerbench.models.language_model import LanguageModel
from steerbench.models.sites import Site

_CACHE_NAMES = ("cache", "past_key_values")
CACHE = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in _CACHE_NAMES)
"""What passes call the cache that they take and leave; transformers 5.24 renamed it, and knows both names till 5.40."""


_BY_LENGTH = {"dynamic", "longrope", "su"}
"""Kinds of rotary positions that short texts cannot tell from others."""


def continued(mask: Tensor, ids: Tensor) -> Tensor:
    """Return the mask of prompts, (rows, prompt columns), with ones for what of `ids` stands behind them."""
    return torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)


def places(mask: Tensor) -> Tensor:
    """Return the position of each column in its row, padding not counted, (rows, columns)."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def given_cache(kwargs: Mapping[str, Any]) -> Any:
    """Return the cache among the keyword arguments of a pass, by its old or its new name; None where it has none."""
    return _with_columns(next((kwargs[name] for name in _CACHE_NAMES if kwargs.get(name) is not None), None))


def left_cache(output: Any) -> Any:
    """Return the cache that a pass left behind; None where it left none."""
    return _with_columns(getattr(output, CACHE, None))


def _with_columns(cache: Any) -> Any:
    """Return a cache, or None if it does not say how many columns it holds, as the states of Mamba and xLSTM."""
    try:
        cache.get_seq_length()
    except (AttributeError, ValueError):
        return None
    return cache


def run(model: PreTrainedModel, ids: Tensor, mask: Tensor, **chosen: Any) -> Any:
    """Run the model over ids, (rows, columns); of `chosen` it is given what it takes, if that is not None."""
    takes = arguments(model)
    more = {name: value for name, value in chosen.items() if name in takes and value is not None}
    return model(input_ids=ids, attention_mask=mask, **more)


def final_states(lm: LanguageModel, ids: Tensor, mask: Tensor, **chosen: Any) -> tuple[Tensor, Any]:
    """Return the states at `final`, (rows, columns, width), float32, and what the pass returned."""
    found: list[Tensor] = []

    def keep(activation: Tensor) -> None:
        found.append(activation.reshape(*ids.shape, -1).float())

    with watched(lm.anatomy.place(Site("final")), keep):
        out = run(lm.model, ids, mask, **chosen)
    return found[-1], out


def arguments(model: PreTrainedModel) -> frozenset[str]:
    """Return the names that the forward pass of a model takes."""
    return _parameters(type(model).forward)


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def turns_by_length(model: PreTrainedModel) -> bool:
    """Tell whether positions are turned by angles that depend on how long the whole text is: held keys would be old."""
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [one.get("rope_type", one.get("type")) for one in (rope, *rope.values()) if isinstance(one, dict)]
    return any(kind in _BY_LENGTH for kind in kinds)
