"""What a pass of one token calls in a model, in which order: how its parts are found whatever they are called."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerbench.errors import SteerbenchError
from steerbench.models.batching import is_out_of_memory
from steerbench.models.checkpoint import brief
from steerbench.models.modes import evaluating


@dataclass
class BlockTrace:
    """What one block called.

    The order of registration would mislead: Phi-3 registers its output projection first.
    """

    maps: list[str] = field(default_factory=list)
    """Names of the linear maps, in the order of their calls."""
    given: dict[str, int] = field(default_factory=dict)
    """Name of a part of the block, of a module inside it too -> how many hidden states it was handed."""
    shape: tuple[int, ...] = ()
    """Of the state that the block was handed: (1, 1, d_model) where the residual stream is one."""


def traced(model: PreTrainedModel, blocks: nn.ModuleList) -> list[BlockTrace]:
    """Return what a pass calls in each of the decoder blocks."""
    traces = [BlockTrace() for _ in blocks]
    with _without_hooks(model):
        handles = [
            module.register_forward_pre_hook(_note(trace, name, module), with_kwargs=True)
            for trace, block in zip(traces, blocks, strict=True)
            for name, module in block.named_modules()
        ]
        _run(model, handles)
    return traces


def called(model: PreTrainedModel, lists: Iterable[nn.ModuleList]) -> list[nn.ModuleList]:
    """Return the lists of which a pass calls every module: a text does not pass the blocks of a vision tower."""
    lists = list(lists)
    seen: set[nn.Module] = set()
    with _without_hooks(model):
        modules = {module for modules in lists for module in modules}
        _run(model, [m.register_forward_pre_hook(lambda m, _: seen.add(m)) for m in modules])
    return [modules for modules in lists if seen.issuperset(modules)]


def is_linear(module: nn.Module) -> bool:
    """Tell a linear map (also transformers' Conv1D and quantised ones) from norms, embeddings and containers."""
    weight = getattr(module, "weight", None)
    leaf = not any(True for _ in module.children())
    return leaf and isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _note(trace: BlockTrace, name: str, module: nn.Module) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_linear(module):
            trace.maps.append(name)
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.is_floating_point()]
        trace.given[name] = sum(a.ndim == 3 for a in given)
        if not name:
            trace.shape = tuple(given[0].shape) if given else ()

    return note


def _run(model: PreTrainedModel, handles: Sequence[Any]) -> None:
    """Run one token, and remove the hooks that looked on. Raises SteerbenchError where the model's own code fails."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    try:
        with torch.no_grad(), evaluating(model):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = brief(error).rstrip(".")
        raise SteerbenchError(f"{type(model).__name__} fails on a short text: {reason}. Use another model.") from error
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _without_hooks(model: PreTrainedModel) -> Iterator[None]:
    """Lay aside all hooks: those of a steering that is installed would take the pass for one of their own."""
    kinds = ("_forward_pre_hooks", "_forward_hooks")
    own = [(module, kind, dict(getattr(module, kind))) for module in model.modules() for kind in kinds]
    for module, kind, _ in own:
        getattr(module, kind).clear()
    try:
        yield
    finally:
        for module, kind, hooks in own:
            getattr(module, kind).update(hooks)
