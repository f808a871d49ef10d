"""The floor of a comparison: what it says of two draws of one and the same model."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from steerbench.records.scores import Table, aligned
from steerbench.records.statistics import TOLERANCE


def worse_floor(tables: Sequence[Table]) -> float | None:
    """Return the share of prompts with a lower reward in one of two draws of the unsteered model than in the other.

    The draws are the samples in the tables of the unsteered model, one table per seed; every two of them are compared,
    both ways, which makes it (1 - share of ties) / 2. A steering that changes nothing, but draws anew, has this share
    of `worse`: near one half where responses are sampled, 0 where they are greedy. None where there is one draw alone.
    Raises SteerbenchError if the tables do not hold the same prompts.
    """
    alike = [aligned(table, tables[0]).table for table in tables]
    draws = [rewards for table in alike for rewards in _draws(table)]
    apart = [float((np.abs(one - other) > TOLERANCE).mean()) for one, other in combinations(draws, 2)]
    return sum(apart) / len(apart) / 2 if apart else None


def _draws(table: pd.DataFrame) -> list[np.ndarray]:
    """Return the rewards of each sample, (prompts,), in one order of the prompts."""
    in_order = table.sort_values("id", kind="stable")
    samples = in_order["sample"] if "sample" in in_order else pd.Series(0, in_order.index)
    return [in_order["reward"][samples == k].to_numpy(float) for k in sorted(samples.unique())]
