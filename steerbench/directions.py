"""Estimators of directions, shared by methods."""

import torch
from torch import Tensor

from steerbench.generation import Pool
from steerbench.sites import Site
from steerbench.steerer import FitContext


def difference_of_means(context: FitContext, site: Site, pool: Pool) -> Tensor:
    """Return mean(chosen) - mean(rejected) of the pooled activations of the train pairs, (width,), float32."""
    pairs = context.pairs()
    chosen = context.activations(site, [p.chosen for p in pairs], pool)
    rejected = context.activations(site, [p.rejected for p in pairs], pool)
    return torch.stack(chosen).mean(0) - torch.stack(rejected).mean(0)
