"""Linear probes: how well a logistic regression tells the two sides of a contrast apart on pairs it has not seen."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from steerbench.data.splits import split_by_group
from steerbench.errors import SteerbenchError
from steerbench.learn.context import FitContext, Pair
from steerbench.learn.directions import Contrast
from steerbench.models.language_model import LanguageModel

MAX_ITER = 1000


class Probe(NamedTuple):
    """A logistic regression that gives the preferred side 1 and the other side 0."""

    coefficients: Tensor
    """(width,), float32."""
    accuracy: float
    """On the pairs held out; on all of them where none was."""
    converged: bool
    """Whether the regression ended before its last iteration."""


def hold_out(context: FitContext, pairs: Sequence[Pair]) -> Tensor:
    """Mark the pairs of one prompt group in five, drawn, (pairs,); with fewer than five groups none is marked.

    Pairs of one prompt are one group, and so are those of examples that share a group. Where a source of pairs writes
    prompts of its own, the prompt alone counts.
    """
    group_of = {context.lm.tokens(e.prompt, "").prompt: e.group for e in context.examples}
    groups = [group_of.get(p.chosen.prompt, str(p.chosen.prompt)) for p in pairs]
    names = list(dict.fromkeys(groups))
    order = torch.randperm(len(names), generator=context.generator("held-out pairs")).tolist()
    held_out, _ = split_by_group(groups, [names[i] for i in order], [len(names) // 5])
    marks = torch.zeros(len(groups), dtype=torch.bool)
    marks[held_out] = True
    return marks


def by_head(lm: LanguageModel, layer: int, sides: Contrast) -> list[Contrast]:
    """Split states at z of a layer, (pairs, width), into those of its query heads, (pairs, d_head) each."""
    n, width = lm.anatomy.n_heads(layer), sides.preferred.shape[1]
    if width % n:
        raise SteerbenchError(
            f"{n} heads do not divide the width {width} of z in {lm.name}, layer {layer}; use a method such as caa."
        )
    return [Contrast(*both) for both in zip(*(side.chunk(n, dim=1) for side in sides), strict=True)]


def logistic_probe(contrast: Contrast, held_out: Tensor) -> Probe:
    """Train on the pairs that are not held out, (pairs,), and score on those that are.

    The states are taken as they are, without standardisation; the penalty is scikit-learn's, C = 1.
    """
    scored = held_out if held_out.any() else torch.ones_like(held_out)
    regression = LogisticRegression(max_iter=MAX_ITER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` says it, once for all of many probes
        regression.fit(*_rows(contrast, ~held_out))
    accuracy = float(regression.score(*_rows(contrast, scored)))
    return Probe(torch.from_numpy(regression.coef_[0]).float(), accuracy, bool(regression.n_iter_[0] < MAX_ITER))


def _rows(contrast: Contrast, kept: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the states of both sides of some pairs, one below the other, and their labels."""
    states = torch.cat([contrast.preferred[kept], contrast.other[kept]])
    return states.double().numpy(), np.repeat([1, 0], int(kept.sum()))
