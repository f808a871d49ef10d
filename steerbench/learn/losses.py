"""Losses that edits are trained by, on pairs of a preferred and another reply.

Each takes pairs and a `Trial`, which knows what the model says under the edits, and returns the loss of each pair,
(pairs,). log p(y) is the log-probability of a whole response after its prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from steerbench.learn.context import Pair
from steerbench.learn.edit_training import Trial
from steerbench.models.language_model import Tokens
from steerbench.steering.parts import PlacedEdit


def imitation(pairs: Sequence[Pair], trial: Trial) -> Tensor:
    """Return the negative log-probability of the preferred reply, per token: supervised fine-tuning."""
    preferred = [p.chosen for p in pairs]
    return -trial.log_probs(preferred) / _lengths(preferred, trial)


@dataclass(frozen=True)
class DPO:
    """-log sigmoid(beta * (gain(preferred) - gain(other))), gain(y) = log p_edited(y) - log p(y).

    Source: Rafailov et al. 2023, arXiv 2305.18290.
    """

    beta: float = 0.1
    """How dear it is to leave the unsteered model."""

    def __call__(self, pairs: Sequence[Pair], trial: Trial) -> Tensor:
        """Return the loss of each pair."""
        return -logsigmoid(self.beta * margins(pairs, trial))


@dataclass(frozen=True)
class BidirectionalDPO:
    """DPO of the edits d times as strong, d drawn from -1 and 1 for each mini-batch; for -1 the other reply is wanted.

    -log sigmoid(d * beta * (gain_d(preferred) - gain_d(other))). Both signs are averaged where pairs are held out.
    Source: Cao et al. 2024, arXiv 2406.00045.
    """

    forward: Sequence[PlacedEdit]
    """The edits at d = 1."""
    backward: Sequence[PlacedEdit]
    """Made of the same tensors as `forward`, with the strength turned round."""
    beta: float = 0.1
    """How dear it is to leave the unsteered model."""

    def __call__(self, pairs: Sequence[Pair], trial: Trial) -> Tensor:
        """Return the loss of each pair."""
        signs = [1, -1]
        if trial.generator is not None:
            signs = [signs[int(torch.randint(2, (), generator=trial.generator))]]
        each = [
            -logsigmoid(sign * self.beta * margins(pairs, trial, self.forward if sign > 0 else self.backward))
            for sign in signs
        ]
        return torch.stack(each).mean(0)


@dataclass(frozen=True)
class ScaledSimPO:
    """-log sigmoid(margin under the edit) - log sigmoid(margin the other way with what it adds taken out).

    With a reply's mean log-probability per token m(y), the preferred reply w and the other one l:

        margin = s m_steered(w) - m_steered(l),    s = max(log p(l) - log p(w), 1)
        margin = t m_nulled(l) - m_nulled(w),      t = max(log p(w) - log p(l), 1)

    log p in s and t is that of the unsteered model: what it finds unlikely counts for more. Each mini-batch draws one
    of `steered`; pairs held out are scored with the middle one. Source: Wu et al. 2025, arXiv 2505.20809.
    """

    steered: Sequence[Sequence[PlacedEdit]]
    """Edits of several strengths, made of the same tensors."""
    nulled: Sequence[PlacedEdit]
    """What takes the direction out, made of the same tensors."""

    def __call__(self, pairs: Sequence[Pair], trial: Trial) -> Tensor:
        """Return the loss of each pair."""
        chosen, rejected = [p.chosen for p in pairs], [p.rejected for p in pairs]
        gap = trial.reference(rejected) - trial.reference(chosen)
        count, generator = len(self.steered), trial.generator
        i = count // 2 if generator is None else int(torch.randint(count, (), generator=generator))
        total = torch.zeros_like(gap)
        for edits, wanted, other, scale in (
            (self.steered[i], chosen, rejected, gap.clamp_min(1)),
            (self.nulled, rejected, chosen, (-gap).clamp_min(1)),
        ):
            m = trial.log_probs([*wanted, *other], edits) / _lengths([*wanted, *other], trial)
            total = total - logsigmoid(scale * m[: len(pairs)] - m[len(pairs) :])
        return total


def margins(pairs: Sequence[Pair], trial: Trial, edits: Sequence[PlacedEdit] | None = None) -> Tensor:
    """Return by how much more the edits raise log p of the preferred reply than of the other one, (pairs,)."""
    replies = [*(p.chosen for p in pairs), *(p.rejected for p in pairs)]
    gains = trial.log_probs(replies, edits) - trial.reference(replies)
    return gains[: len(pairs)] - gains[len(pairs) :]


def _lengths(replies: Sequence[Tokens], trial: Trial) -> Tensor:
    """Return the tokens of each response, (replies,)."""
    return torch.tensor([len(t.response) for t in replies], device=trial.lm.device)
