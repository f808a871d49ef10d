"""One forward pass over rows of ids, with what the family takes besides them."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steerbench.engine.hooks import watched
from steerbench.models.language_model import LanguageModel
from steerbench.models.sites import Site


def continued(mask: Tensor, ids: Tensor) -> Tensor:
    """Return the mask of prompts, (rows, prompt columns), with ones for what of `ids` stands behind them."""
    return torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)


def places(mask: Tensor) -> Tensor:
    """Return the position of each column in its row, padding not counted, (rows, columns)."""
    return (mask.cumsum(1) - 1).clamp_min(0)


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
