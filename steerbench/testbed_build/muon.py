"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon), in the precision that a machine is fast in.

torch's own multiplies in bf16 whatever the machine, which takes a processor without instructions for it 50 times as
long. Matrices of one shape are taken together.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Final

import torch
from torch import Tensor

from steerbench.models.machine import fast_dtype

_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
_STEPS: Final = 5
_TINY: Final = 1e-7


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made nearly orthogonal; matrices alone, without weight decay."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step along Nesterov's momentum."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:  # a part that the loss does not reach stays
                    alike[matrix.shape].append(matrix)
            for (rows, columns), matrices in alike.items():
                updates = orthogonal(torch.stack([self._update(matrix, group["momentum"]) for matrix in matrices]))
                rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.sub_(update, alpha=rate)

    def _update(self, matrix: Tensor, momentum: float) -> Tensor:
        assert matrix.grad is not None
        mean: Tensor = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
        mean.lerp_(matrix.grad, 1 - momentum)
        update: Tensor = matrix.grad.lerp(mean, momentum)
        return update


def orthogonal(matrices: Tensor) -> Tensor:
    """Return nearly U V^T of each matrix U S V^T, (n, rows, columns): its singular values come to lie around one."""
    a, b, c = _COEFFICIENTS
    wide = matrices.to(fast_dtype(matrices.device))
    wide = wide.mT if wide.shape[1] > wide.shape[2] else wide
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=_TINY)
    for _ in range(_STEPS):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    found: Tensor = wide.mT if matrices.shape[1] > matrices.shape[2] else wide
    return found.to(matrices.dtype)
