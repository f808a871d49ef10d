"""Train edits through a frozen model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from steerbench.engine.install import steered
from steerbench.engine.positions import Positions
from steerbench.errors import SteerbenchError
from steerbench.models.language_model import Batch, LanguageModel
from steerbench.steering.parts import PlacedEdit, RankedEdit


@contextmanager
def trainable(lm: LanguageModel, edits: Sequence[PlacedEdit], batch: Batch) -> Iterator[None]:
    """Edit one pass over a right-padded batch, `lm.right_padded(...)`, through which gradients reach the edits.

    Inside, `lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)` gives logits,
    and a loss made of them has gradients for every parameter and buffer of the edits that asks for one. The edits act
    themselves, not copies of them, in the mode they are in, and must be on the device of their site. The model's
    weights get no gradient, whatever they ask for; on exit they ask for it again. An edit that competes for prompts
    cannot be trained: SteerbenchError.
    """
    for placed in edits:
        if isinstance(placed.edit, RankedEdit):
            name = type(placed.edit).__name__
            raise SteerbenchError(f"{name} at {placed.site} is chosen by rank; it has no gradient.")
        module = lm.anatomy.place(placed.site).module
        home, tensors = next(module.parameters()).device, [*placed.edit.parameters(), *placed.edit.buffers()]
        if away := {str(t.device) for t in tensors if t.device != home}:
            raise SteerbenchError(
                f"{type(placed.edit).__name__} is on {min(away)} and its site {placed.site} on {home}; move it there."
            )
    positions = Positions(batch, lm.end_ids, cached=False)
    with torch.enable_grad(), _frozen(lm.model), steered(lm.model, lm.anatomy, edits, positions, learning=True):
        yield


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Ask for no gradient of any weight inside."""
    asking = [p for p in model.parameters() if p.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
