"""Estimators of directions, shared by methods: a contrast in, a direction toward its preferred side out."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from steerbench.engine.activations import Pool
from steerbench.errors import SteerbenchError
from steerbench.learn.context import FitContext, Pair
from steerbench.learn.pairs import PairSource, pairs_from
from steerbench.models.sites import Site


class Contrast(NamedTuple):
    """Pooled states of the two sides of pairs, (pairs, width) each, float32; row i of both is pair i."""

    preferred: Tensor
    """(pairs, width)"""
    other: Tensor
    """(pairs, width)"""

    @property
    def differences(self) -> Tensor:
        """Preferred minus other, (pairs, width)."""
        return self.preferred - self.other

    @property
    def mean_length(self) -> float:
        """The mean length of the states of both sides."""
        return float(torch.cat(self).norm(dim=1).mean())

    def apart(self, max_cosine: float) -> "Contrast":
        """Return the pairs whose two sides have at most this cosine."""
        rows = cosine_similarity(self.preferred, self.other) <= max_cosine
        return Contrast(self.preferred[rows], self.other[rows])


def contrast(
    context: FitContext, site: Site, pool: Pool, pairs: PairSource | Sequence[Pair] = "preferences"
) -> Contrast:
    """Read both sides of pairs, given or named by their source, at a site.

    Raises SteerbenchError where the pool sees nothing that tells the sides apart, or has no reply to read.
    """
    return contrasts(context, [site], pool, pairs)[site]


def contrasts(
    context: FitContext, sites: Sequence[Site], pool: Pool, pairs: PairSource | Sequence[Pair] = "preferences"
) -> dict[Site, Contrast]:
    """Return what `contrast` does for each of several sites, from one pass over each side."""
    source = repr(pairs) if isinstance(pairs, str) else "given"
    pairs = pairs_from(context, pairs) if isinstance(pairs, str) else pairs
    _check(pairs, pool, source)
    preferred = context.activations_at(sites, [p.chosen for p in pairs], pool)
    other = context.activations_at(sites, [p.rejected for p in pairs], pool)
    return {site: Contrast(torch.stack(preferred[site]), torch.stack(other[site])) for site in sites}


def _check(pairs: Sequence[Pair], pool: Pool, source: str) -> None:
    if pool == "last_prompt" and all(p.chosen.prompt == p.rejected.prompt for p in pairs):
        raise SteerbenchError(
            f"pool='last_prompt' sees no reply, and without one both sides of pairs={source} are the same; "
            f"set pool=last_response, or pairs=personas."
        )
    if pool in ("last_response", "response_mean") and not any(t.response for p in pairs for t in p):
        raise SteerbenchError(f"pairs={source} have no reply for pool={pool!r}; set pool=last_prompt.")
    if pool in ("last_response", "response_mean") and all(p.chosen == p.rejected for p in pairs):
        raise SteerbenchError(
            f"both sides of pairs={source} are the same in the tokens that are read, as many as a response may have; "
            f"raise --max-new-tokens."
        )


def difference_of_means(contrast: Contrast) -> Tensor:
    """Return mean(preferred) - mean(other), (width,)."""
    return contrast.preferred.mean(0) - contrast.other.mean(0)


def principal_difference(contrast: Contrast) -> Tensor:
    """Return the first right singular vector of the differences, (width,), toward the preferred side.

    Not centred: the mean of the differences is what is looked for, and a PCA subtracts it.
    """
    return toward_preferred(singular_directions(contrast.differences, 0.0), contrast)[0]


def singular_directions(rows: Tensor, energy: float) -> Tensor:
    """Return the fewest right singular vectors of uncentred rows that hold a share of their energy, (k, width).

    k is at least 1. Unit vectors, orthogonal, largest singular value first; the sign is as the algorithm leaves it.
    Rows of zeros have no direction: one row of zeros is returned.
    """
    if not rows.any():
        return torch.zeros_like(rows[:1])
    _, values, axes = torch.linalg.svd(rows.double(), full_matrices=False)
    held = values.square().cumsum(0) / values.square().sum()
    count = int((held < energy - 1e-12).sum()) + 1
    directions: Tensor = axes[:count].float()
    return directions


def toward_preferred(directions: Tensor, contrast: Contrast) -> Tensor:
    """Turn each of the directions, (k, width), so that the mean difference of the pairs along it is not negative."""
    leaning = directions @ contrast.differences.mean(0)
    return torch.where(leaning[:, None] < 0, -directions, directions)


def at_relative_norm(direction: Tensor, contrast: Contrast, relative_norm: float | None) -> Tensor:
    """Return a direction, (width,), as long as this share of the mean length of the contrast's states; None: as it is.

    A direction of length 0 stays 0.
    """
    if relative_norm is None:
        return direction
    return normalize(direction, dim=0) * relative_norm * contrast.mean_length
