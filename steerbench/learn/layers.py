"""Which layers a method works in."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from steerbench.errors import SteerbenchError
from steerbench.models.language_model import LanguageModel


def block_at(lm: LanguageModel, depth: float, layer: int | float | None = None) -> int:
    """Return `layer`, or for None the block at this share of the depth. Raises SteerbenchError if there is none.

    A layer that is a fraction, from 0.0 to below 1, is a share of the depth as well: the nearest block there is.
    """
    if isinstance(layer, float):
        if not 0 <= layer < 1:
            raise SteerbenchError(f"layer={layer} is no share of the depth; give 0.0 to 0.99, or a whole number.")
        return min(round(lm.n_layers * layer), lm.n_layers - 1)
    chosen = round(lm.n_layers * depth) if layer is None else layer
    if not 0 <= chosen < lm.n_layers:
        raise SteerbenchError(f"layer={chosen} is outside 0..{lm.n_layers - 1} of {lm.name}.")
    return chosen


def middle_layer(lm: LanguageModel, layer: int | float | None) -> int:
    """Return the block that `layer` stands for, as `block_at` does, or for None the one at 13/32 of the depth.

    That is layer 13 of Llama-2-7B, where CAA works best.
    """
    return block_at(lm, 13 / 32, layer)


def elbow(losses: Sequence[float]) -> list[int]:
    """Return the layers with the lowest losses, lowest first, up to where the mean of the lowest rises most.

    With m_j the mean of the j lowest losses, these are the j layers for which m_(j+1) - m_j is largest.
    """
    order = sorted(range(len(losses)), key=losses.__getitem__)
    means = [total / j for j, total in enumerate(accumulate(losses[i] for i in order), start=1)]
    rises = [after - before for before, after in pairwise(means)]
    return order[: rises.index(max(rises)) + 1] if rises else order
