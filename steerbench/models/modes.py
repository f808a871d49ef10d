"""A model for the length of one pass: in evaluation mode, with generation settings of ours, and then as it came."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import GenerationConfig, PreTrainedModel


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Put every module into evaluation mode; on exit each is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def generating(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Generate with this configuration alone.

    It is no argument of `model.generate`, which takes from the model's own whatever an argument leaves open: a
    checkpoint's sampling and penalties would leak into every call.
    """
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own
