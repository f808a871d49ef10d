"""Contrast-Consistent Search: a linear probe found without labels, from the two sides of pairs.

Source: Burns, Ye, Klein and Steinhardt 2022, "Discovering Latent Knowledge in Language Models Without Supervision",
ICLR 2023, arXiv 2212.03827; their code is collin-burns/discovering_latent_knowledge @00a6233.

    p(x) = sigmoid((x - centre) . w + b),    L = mean min(p0, p1)^2 + mean (p0 - (1 - p1))^2

with x0 the other and x1 the preferred side of a pair. The loss does not say which side is which: a probe and its
opposite fit alike. `CCS.direction` tells by the class means.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from steerbench.errors import SteerbenchError, suggest
from steerbench.learn.directions import Contrast

Centre = Literal["none", "joint", "class"]
"""
What is subtracted from the states before the probe sees them:

- `none`: nothing, as AlignEZ v1 does
- `joint`: the mean of all states of both sides
- `class`: from each side its own mean, as Burns et al. do, whose sides are "yes" and "no" of questions with either
  answer. Where the sides differ by what is looked for, as preferred and other replies do, this removes it.
"""
Optimizer = Literal["adamw", "lbfgs"]
Side = Literal["other", "preferred"]


@dataclass(frozen=True, eq=False)
class CCS:
    """A fitted probe."""

    weight: Tensor
    """(width,), float32."""
    bias: float
    loss: float
    """Of the finished probe; the lowest of the restarts."""
    centres: Tensor
    """(2, width): what is subtracted from states of the other side, and from states of the preferred side."""

    def probability(self, states: Tensor, side: Side | None = None) -> Tensor:
        """Return p(x) of each state; (..., width) gives (...).

        With per-class centring, p depends on the side that the states are of, and `side` must be given.
        """
        if side is None and not torch.equal(self.centres[0], self.centres[1]):
            raise SteerbenchError("this CCS probe is centred per class; say of which side the states are.")
        centre = self.centres[0 if side == "other" else 1]
        return torch.sigmoid((states - centre) @ self.weight + self.bias)

    def direction(self, contrast: Contrast) -> Tensor | None:
        """Return the unit vector, (width,), toward the preferred side, or None if the class means do not tell.

        They do if the probe puts them on different sides of one half.
        """
        preferred = float(self.probability(contrast.preferred.mean(0), "preferred"))
        other = float(self.probability(contrast.other.mean(0), "other"))
        if not min(preferred, other) < 0.5 < max(preferred, other):
            return None
        unit: Tensor = self.weight / self.weight.norm()
        return unit if preferred > other else -unit


def ccs_loss(p0: Tensor, p1: Tensor) -> Tensor:
    """Return the loss of the probabilities of the two sides; (pairs, ...) gives (...)."""
    return torch.minimum(p0, p1).square().mean(0) + (p0 - (1 - p1)).square().mean(0)


def fit_ccs(  # noqa: PLR0913 - the settings of one training, each by name
    contrast: Contrast,
    generator: torch.Generator,
    *,
    centre: Centre = "none",
    restarts: int = 10,
    optimizer: Optimizer = "adamw",
    epochs: int = 1000,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
) -> CCS:
    """Fit probes from several random initialisations and return the one with the lowest loss.

    Defaults are those of the published code, but for `centre`, which is "class" there: AdamW, all pairs in every step.
    AdamW moves every coordinate at one pace, so that its weight leans to the signs of the direction and not to the
    direction: at any signal their cosine stays near sqrt(2 / pi) = 0.8 for a direction drawn at random. `lbfgs`
    minimises the loss with `weight_decay` / 2 * |w|^2, in at most `epochs` iterations, without `lr`.

    In the published code the loss of a restart is that before its last step, here that of the finished probe. States
    are not scaled, as published: where they are so long that p begins at 0 or 1, its gradient vanishes and the probe
    stays near its start.
    Raises SteerbenchError for fewer than two pairs and for states that are not finite.
    """
    _check(contrast, centre, restarts, epochs)
    if optimizer not in get_args(Optimizer):
        raise SteerbenchError(suggest("optimizer of CCS", optimizer, list(get_args(Optimizer))))
    sides = torch.stack([contrast.other, contrast.preferred]).float()  # (2, pairs, width)
    centres = _centres(sides, centre)
    probes = _drawn(restarts, sides.shape[-1], generator)
    if optimizer == "adamw":
        _train(probes, sides - centres, epochs, lr, weight_decay)
    else:
        _minimise(probes, sides - centres, epochs, weight_decay)
    losses = ccs_loss(*probes(sides - centres))
    best = int(losses.argmin())
    return CCS(probes.weights[best].clone(), float(probes.biases[best]), float(losses[best]), centres[:, 0])


class _Probes(NamedTuple):
    """Several probes beside each other: `weights` is (probes, width), `biases` (probes,)."""

    weights: Tensor
    biases: Tensor

    def __call__(self, sides: Tensor) -> Tensor:
        """Return the probabilities; (2, pairs, width) gives (2, pairs, probes)."""
        logits = torch.addmm(self.biases, sides.flatten(0, 1), self.weights.T)
        return torch.sigmoid(logits).view(*sides.shape[:2], -1)

    def gradient(self, sides: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the sum of the probes' losses, shaped as `weights` and `biases`."""
        p = self(sides)
        p0, p1 = p
        lower = torch.stack([p0 <= p1, p1 < p0])
        by_p = 2 * (p * lower + (p0 + p1 - 1)) / p.shape[1]
        by_logit = (by_p * p * (1 - p)).flatten(0, 1)
        return by_logit.T @ sides.flatten(0, 1), by_logit.sum(0)


def _drawn(count: int, width: int, generator: torch.Generator) -> _Probes:
    """Draw probes one after the other, each as torch draws a linear layer."""
    bound = width**-0.5
    drawn = torch.empty(count, width + 1).uniform_(-bound, bound, generator=generator)
    return _Probes(drawn[:, :-1].clone(), drawn[:, -1].clone())


def _train(probes: _Probes, sides: Tensor, epochs: int, lr: float, weight_decay: float) -> None:
    """Change the probes in place. AdamW treats each number by itself, so together they train as each would alone."""
    optimizer = torch.optim.AdamW([*probes], lr=lr, weight_decay=weight_decay, fused=True)
    for _ in range(epochs):
        probes.weights.grad, probes.biases.grad = probes.gradient(sides)
        optimizer.step()


def _minimise(probes: _Probes, sides: Tensor, iterations: int, decay: float) -> None:
    """Change the probes in place, one after the other, in float64."""
    wide = sides.double()

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        x = torch.from_numpy(flat)
        probe = _Probes(x[None, :-1], x[-1:])
        by_weight, by_bias = probe.gradient(wide)
        loss = ccs_loss(*probe(wide))[0] + decay / 2 * x[:-1].square().sum()
        return float(loss), torch.cat([by_weight[0] + decay * x[:-1], by_bias]).numpy()

    for weight, bias in zip(*probes, strict=True):
        start = torch.cat([weight, bias[None]]).double().numpy()
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": iterations}).x
        weight.copy_(torch.from_numpy(found[:-1]))
        bias.fill_(found[-1])


def _centres(sides: Tensor, centre: Centre) -> Tensor:
    """Return what to subtract from each side, (2, 1, width)."""
    if centre == "none":
        return torch.zeros_like(sides[:, :1])
    means = sides.mean(1, keepdim=True)
    return means if centre == "class" else means.mean(0, keepdim=True).repeat(2, 1, 1)


def _check(contrast: Contrast, centre: Centre, restarts: int, epochs: int) -> None:
    preferred, other = contrast
    if preferred.ndim != 2 or preferred.shape != other.shape:
        shapes = f"{tuple(preferred.shape)} and {tuple(other.shape)}"
        raise SteerbenchError(f"CCS needs states of both sides of the same pairs, (pairs, width); these are {shapes}.")
    if len(preferred) < 2:
        raise SteerbenchError(f"CCS needs at least 2 pairs, not {len(preferred)}; use more training examples.")
    if not bool(torch.stack([preferred, other]).isfinite().all()):
        raise SteerbenchError("CCS found states that are not finite; load the model in float32 or bfloat16.")
    if centre not in get_args(Centre):
        raise SteerbenchError(suggest("centre of CCS", centre, list(get_args(Centre))))
    if restarts < 1 or epochs < 1:
        raise SteerbenchError(f"CCS with restarts={restarts} and epochs={epochs} learns nothing; give at least 1 each.")
