"""Estimators of directions, shared by methods: a contrast in, a direction toward its preferred side out."""

from typing import NamedTuple

import torch
from torch import Tensor

from steerbench.generation import Pool
from steerbench.pairs import PairSource, pairs_from
from steerbench.sites import Site
from steerbench.steerer import FitContext


class Contrast(NamedTuple):
    """Pooled states of the two sides of pairs, (pairs, width) each, float32; row i of both is pair i."""

    preferred: Tensor
    other: Tensor

    @property
    def differences(self) -> Tensor:
        """Preferred minus other, (pairs, width)."""
        return self.preferred - self.other


def contrast(context: FitContext, site: Site, pool: Pool, source: PairSource = "preferences") -> Contrast:
    """Read both sides of the pairs of a source at a site."""
    pairs = pairs_from(context, source)
    preferred = context.activations(site, [p.chosen for p in pairs], pool)
    other = context.activations(site, [p.rejected for p in pairs], pool)
    return Contrast(torch.stack(preferred), torch.stack(other))


def difference_of_means(contrast: Contrast) -> Tensor:
    """Return mean(preferred) - mean(other), (width,)."""
    return contrast.preferred.mean(0) - contrast.other.mean(0)


def principal_difference(contrast: Contrast) -> Tensor:
    """Return the first right singular vector of the differences, (width,), a unit vector with mean(D v) >= 0.

    Not centred: the mean of the differences is what is looked for, and a PCA subtracts it.
    """
    axis: Tensor = torch.linalg.svd(contrast.differences.double(), full_matrices=False).Vh[0].float()
    return axis if float((contrast.differences @ axis).mean()) >= 0 else -axis
