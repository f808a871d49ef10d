"""The gain at equal length: what is left of a gain once it is not paid for being longer, or shorter."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from steerbench.records.regression import coefficients, interval_ends, moments, resampled_coefficients
from steerbench.records.scores import Scores, Table, aligned, scores_of
from steerbench.records.statistics import Interval, settled

NEEDED = ("id", "group", "reward", "length")
"""Columns without which there is no such gain."""

_TOGETHER = 100
"""Methods whose resamples are held at once."""

Pairs = Sequence[tuple[Table, Table]]
"""The examples of a method and of the unsteered model, for each seed."""


def length_controlled(found: Mapping[str, Pairs]) -> dict[str, Interval | None]:
    """Return the gain in reward of each method at the length of the unsteered responses, with its 95 % interval.

    Over all pairs of responses to one prompt, of steered and unsteered model with the same seed and sample, least
    squares fit

        reward_steered - reward_unsteered = a + b * log((1 + length_steered) / (1 + length_unsteered))

    and the gain is a: that at a difference of zero. The interval is that of resampled clusters of prompts. After the
    length-controlled AlpacaEval (Dubois et al., arXiv:2404.04475), which fits win rates by a logistic regression and
    sets the length's term to zero likewise. Where a method makes every response much longer, a is extrapolated, and its
    interval is wide. None where all pairs differ in length by one and the same factor other than one. Raises
    SteerbenchError if two tables do not hold the same prompts.
    """
    if not found:
        return {}
    like = scores_of(next(iter(found.values()))[0][1])
    codes = pd.factorize(like.table["group"])[0]
    fits = {name: sum(_moments(*pair, like, codes) for pair in pairs) for name, pairs in found.items()}
    gains = {name: float(coefficients(fit.sum(axis=0))[0]) for name, fit in fits.items()}
    known = [name for name, gain in gains.items() if np.isfinite(gain)]
    if codes.max() == 0 or not known:
        return {name: Interval(gain, None, None) if name in known else None for name, gain in gains.items()}
    ends: dict[str, tuple[float, float]] = {}
    for start in range(0, len(known), _TOGETHER):
        some = known[start : start + _TOGETHER]
        draws = resampled_coefficients([fits[name] for name in some])
        ends |= {name: interval_ends(draws[:, i, 0]) for i, name in enumerate(some)}
    return {name: Interval(gain, *ends[name]) if name in ends else None for name, gain in gains.items()}


def _moments(steered: Table, unsteered: Table, like: Scores, codes: Any) -> Any:
    one, other = aligned(steered, like), aligned(unsteered, like)
    gains = settled(one.numbers("reward") - other.numbers("reward"))
    longer = np.log1p(one.numbers("length")) - np.log1p(other.numbers("length"))
    return moments(np.ones(len(gains)), longer, gains, codes)
