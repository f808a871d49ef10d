"""A steering as other libraries know it: one vector for each block, added to its output at every position."""

from collections.abc import Mapping

import torch
from torch import Tensor

from steerbench.errors import SteerbenchError
from steerbench.models.sites import Site
from steerbench.steering.additions import Add
from steerbench.steering.parts import PlacedEdit
from steerbench.steering.steering import Steering

LayerVectors = Mapping[int, Tensor]
"""By block, counted from 0: what is added to its output, (width,), float32."""


def layer_vectors(steering: Steering) -> dict[int, Tensor]:
    """Return what a steering adds to the output of each block.

    Raises SteerbenchError where it does anything else: another library would leave that out without a word.
    """
    if steering.prompt or steering.logits or steering.decode or not steering.edits:
        raise SteerbenchError(
            "only edits of activations can be written as vectors, and this steering is not made of them; "
            "--format steering keeps all of it."
        )
    found: dict[int, Tensor] = {}
    for placed in steering.edits:
        layer, vector = _vector(placed)
        found[layer] = found[layer] + vector if layer in found else vector.clone()
    return dict(sorted(found.items()))


def steering_of(vectors: LayerVectors) -> Steering:
    """Return the steering that adds a vector to the output of each block, at every position."""
    edits = [PlacedEdit(Site("resid_post", layer), Add(v.float()), "all") for layer, v in sorted(vectors.items())]
    if not edits:
        raise SteerbenchError("there is no vector in it.")
    return Steering(edits=tuple(edits))


def checked(vectors: Mapping[int, object], where: str) -> dict[int, Tensor]:
    """Return vectors that came from a file, in float32. Raises SteerbenchError if they are none."""
    found: dict[int, Tensor] = {}
    for layer, vector in vectors.items():
        if not isinstance(vector, Tensor) or vector.ndim != 1 or not vector.is_floating_point() or layer < 0:
            raise SteerbenchError(f"{where}: what it has for block {layer} is no vector of numbers.")
        found[layer] = vector.detach().to("cpu", torch.float32)
    if len({len(v) for v in found.values()}) > 1:
        raise SteerbenchError(f"{where}: its vectors are not of one length.")
    return found


def _vector(placed: PlacedEdit) -> tuple[int, Tensor]:
    """Return the block and the vector of an edit."""
    what, constant = f"{type(placed.edit).__name__} at {placed.site}", placed.edit.constant()
    if constant is None:
        raise SteerbenchError(f"{what} is no constant vector, and other libraries know nothing else.")
    if placed.site.name != "resid_post" or placed.site.layer is None:
        raise SteerbenchError(f"{what} does not act on the output of a block, where other libraries add their vectors.")
    if placed.scope != "all":
        raise SteerbenchError(
            f"{what} steers the {placed.scope} alone, and other libraries steer every position; fit it with scope=all."
        )
    return placed.site.layer, constant.detach().to("cpu", torch.float32)
