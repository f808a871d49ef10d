"""Means over all tokens of responses, from means over the tokens of each: long responses count for more."""

from collections.abc import Mapping, Sequence

import numpy as np


def over_tokens(columns: Mapping[str, Sequence[float]], n_tokens: Sequence[int]) -> dict[str, float]:
    """Return the mean of each column over all tokens. Left out where a response with tokens has no finite value."""
    weights = np.asarray(n_tokens, float)
    some = weights > 0
    values = {name: np.asarray(column, float)[some] for name, column in columns.items()}
    known = {name: v for name, v in values.items() if some.any() and np.isfinite(v).all()}
    return {name: float(np.average(v, weights=weights[some])) for name, v in known.items()}
