"""Agreement of two scores: whether the responses that one of them prefers are those that the other does.

A guide and the truth may agree on what the unsteered model writes, and hardly at all on what a steering makes of it: a
reward model is trusted where it has not been looked at. The mean gains do not show that.
"""

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype


def agreement(table: pd.DataFrame, one: str, other: str) -> float | None:
    """Return the rank correlation (Spearman, ties with their mean rank) of two scores over the responses of a table.

    None where one of them is not there, is not a number for every response, or does not vary.
    """
    if not all(name in table and is_numeric_dtype(table[name]) for name in (one, other)):
        return None
    scores = [table[name] for name in (one, other)]
    if not all(np.isfinite(score.to_numpy(float)).all() for score in scores):
        return None
    ranks = [score.rank().to_numpy() for score in scores]
    return float(np.corrcoef(ranks)[0, 1]) if all(len(set(rank)) > 1 for rank in ranks) else None
