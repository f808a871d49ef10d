"""Hooks at places of a model: change the activation there, watch it, or read it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from steerbench.models.language_model import Batch
from steerbench.models.modes import evaluating
from steerbench.models.sites import Place

T = TypeVar("T")


def hook(place: Place, function: Callable[[Tensor], Tensor | None] | Callable[[Tensor], None]) -> Any:
    """Register a function of the activation at a place; what it returns, unless None, replaces the activation."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = function(args[0])
        return None if new is None else (new, *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return function(output)
        new = function(output[0])
        return None if new is None else (new, *output[1:])

    if place.side == "input":
        return place.module.register_forward_pre_hook(before)
    return place.module.register_forward_hook(after)


@contextmanager
def watched(place: Place, read: Callable[[Tensor], None]) -> Iterator[None]:
    """Hand each activation at a place to `read` inside the context; nothing is changed."""
    handle = hook(place, read)
    try:
        yield
    finally:
        handle.remove()


class _Seen(Exception):
    """Ends a forward pass as soon as every activation wanted is there."""


def read(model: PreTrainedModel, places: Sequence[Place], batch: Batch, keep: Callable[[Tensor], T]) -> dict[Place, T]:
    """Run a batch and return what `keep` makes of the activation at each place, (rows, columns, width).

    What comes behind the last place is not computed. The model may write into an activation later: a part of one that
    is to be kept while the pass goes on must be copied.
    """
    found: dict[Place, T] = {}

    def note(place: Place, activation: Tensor) -> None:
        found.setdefault(place, keep(activation.reshape(*batch.input_ids.shape, -1)))
        if len(found) == len(set(places)):
            raise _Seen

    with ExitStack() as stack:
        stack.enter_context(suppress(_Seen))
        for place in places:
            stack.enter_context(watched(place, partial(note, place)))
        stack.enter_context(evaluating(model))
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    return found
