"""What differences can be seen with how many prompts, from how much the differences of measured records vary."""

from collections.abc import Sequence
from math import ceil, inf, sqrt
from statistics import NormalDist

import pandas as pd

from steerbench.errors import SteerbenchError
from steerbench.records.leaderboard import method_gaps
from steerbench.records.record import Record
from steerbench.records.statistics import Gaps, standard_error


def power_table(
    records: Sequence[Record], metric: str, difference: float | None = None, *, power: float = 0.8, alpha: float = 0.05
) -> pd.DataFrame:
    """Return for each task and method which differences to the unsteered model can be seen.

    - `sd`: standard deviation of the paired difference per prompt, that of independent prompts with the same
      standard error: prompts of one cluster count for less, several responses to a prompt for more
    - `n_examples`: prompts measured
    - `n_needed`: prompts with which a true `difference` is found in `power` of all studies, two-sided at `alpha`;
      there only if one is given
    - `smallest`: difference that the prompts measured would show with that power
    - `smallest_2x`, `smallest_4x`: what twice and four times as many prompts of the same kind would

    Raises SteerbenchError for numbers out of range, and if no method has the metric beside the unsteered model.
    """
    z = _quantiles(power, alpha)
    if difference is not None and not 0 < difference < inf:
        raise SteerbenchError(f"the difference is {difference}; it must be a number above 0, in units of {metric}.")
    rows = [
        _row(task, method, gap, error, difference, z)
        for (task, method), gap in method_gaps(records, metric).items()
        if (error := standard_error(gap))
    ]
    if not rows:
        raise SteerbenchError(
            f"no record has {metric}, differing over several posts or openings, beside an unsteered one; give a folder "
            f"with both, or another --metric."
        )
    return pd.DataFrame(rows)


def _quantiles(power: float, alpha: float) -> float:
    if not (0 < alpha < 1 and alpha < power < 1):
        raise SteerbenchError(f"power {power} and alpha {alpha} must lie between 0 and 1, and power above alpha.")
    normal = NormalDist()
    return normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)


def _row(task: str, method: str, gap: Gaps, error: float, difference: float | None, z: float) -> dict[str, object]:
    n = len(set(gap.ids))
    sd = error * sqrt(n)
    return {
        "task": task,
        "method": method,
        "sd": sd,
        "n_examples": n,
        **({} if difference is None else {"n_needed": max(2, ceil((z * sd / difference) ** 2))}),
        "smallest": z * error,
        "smallest_2x": z * error / sqrt(2),
        "smallest_4x": z * error / 2,
    }
