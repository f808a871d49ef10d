"""Means over all tokens of responses, from means over the tokens of each: long responses count for more."""

from collections.abc import Mapping, Sequence
from math import exp

import numpy as np

from steerbench.records.scores import Table, scores_of


def over_tokens(columns: Mapping[str, Sequence[float]], n_tokens: Sequence[int]) -> dict[str, float]:
    """Return the mean of each column over all tokens. Left out where a response with tokens has no finite value."""
    weights = np.asarray(n_tokens, float)
    some = weights > 0
    values = {name: np.asarray(column, float)[some] for name, column in columns.items()}
    known = {name: v for name, v in values.items() if some.any() and np.isfinite(v).all()}
    return {name: float(np.average(v, weights=weights[some])) for name, v in known.items()}


def pooled_perplexity(tables: Sequence[Table]) -> float | None:
    """Return exp of the mean of -log p over all tokens of all responses; None where a table does not have them.

    Tables hold `nll`, the mean over a response's tokens in nats, and `tokens`, their number. A mean of the perplexities
    of responses would be that of their worst few: the exponential of one bad response outweighs all others.
    """
    pairs = [[scores_of(table).numbers(name) for name in ("nll", "tokens")] for table in tables]
    if any(column is None for pair in pairs for column in pair):
        return None
    nll, tokens = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
    found = over_tokens({"nll": nll.tolist()}, tokens.tolist())
    return exp(found["nll"]) if found else None


def per_response(table: Table, column: str) -> float | None:
    """Return the mean over responses of a column's sum over their tokens; one without tokens has 0.

    None where the table does not have the column, or a response with tokens no finite value.
    """
    values, tokens = (scores_of(table).numbers(name) for name in (column, "tokens"))
    if values is None or tokens is None:
        return None
    sums = np.where(tokens > 0, tokens * values, 0.0)
    return float(sums.mean()) if np.isfinite(sums).all() else None
