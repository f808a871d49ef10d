"""What differences can be seen with how many prompts, from how much the differences of measured records vary.

More prompts make the mean over prompts surer, and leave what seeds differ by as it is.
"""

from collections.abc import Sequence
from math import ceil, exp, inf, log, sqrt
from statistics import NormalDist

import pandas as pd

from steerbench.errors import SteerbenchError
from steerbench.records.crossed_effects import critical
from steerbench.records.leaderboard import method_gaps
from steerbench.records.record import Record
from steerbench.records.statistics import Gaps, by_seeds, standard_error

_MOST = 1e6
"""Times the prompts measured that are looked at, most."""


def power_table(
    records: Sequence[Record], metric: str, difference: float | None = None, *, power: float = 0.8, alpha: float = 0.05
) -> pd.DataFrame:
    """Return for each task and method which differences to the unsteered model can be seen.

    - `sd`: standard deviation of the paired difference per prompt, that of independent prompts with the same
      standard error: prompts of one cluster count for less, several responses to a prompt for more, and what seeds
      differ by is in it
    - `n_examples`: prompts measured
    - `n_needed`: prompts with which a true `difference` is found in `power` of all studies, two-sided at `alpha`;
      there only if one is given, and empty where no number of prompts is enough for so few seeds
    - `smallest`: difference that the prompts measured would show with that power
    - `smallest_2x`, `smallest_4x`: what twice and four times as many prompts of the same kind would

    Raises SteerbenchError for numbers out of range, and if no method has the metric beside the unsteered model.
    """
    if not (0 < alpha < 1 and alpha < power < 1):
        raise SteerbenchError(f"power {power} and alpha {alpha} must lie between 0 and 1, and power above alpha.")
    if difference is not None and not 0 < difference < inf:
        raise SteerbenchError(f"the difference is {difference}; it must be a number above 0, in units of {metric}.")
    rows = [
        _row(task, method, gap, _Seen(gap, error, alpha, power), difference)
        for (task, method), gap in method_gaps(records, metric).items()
        if (error := standard_error(gap))
    ]
    if not rows:
        raise SteerbenchError(
            f"no record has {metric}, differing over several posts or openings, beside an unsteered one; give a folder "
            f"with both, or another --metric."
        )
    table = pd.DataFrame(rows)
    return table if difference is None else table.astype({"n_needed": "Int64"})


def smallest_difference(gap: Gaps, *, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Return the true difference that studies like this one find with some power; None where nothing varies."""
    error = standard_error(gap)
    return _Seen(gap, error, alpha, power).smallest(1) if error else None


class _Seen:
    """What can be seen with some times the prompts measured, and the same seeds."""

    def __init__(self, gap: Gaps, error: float, alpha: float, power: float) -> None:
        self._alpha, self._chance = alpha, NormalDist().inv_cdf(power)
        self._ways = by_seeds(gap)
        self.error = error
        self._between = float(self._ways.between[0]) if self._ways else 0.0
        self._seeds = float(self._ways.share[0]) * error**2 if self._ways else 0.0

    def smallest(self, times: float) -> float:
        """Return the difference that is found with `times` the prompts."""
        variance = self._between + (self.error**2 - self._between) / times
        return (self._critical(variance, times) + self._chance) * sqrt(variance)

    def times(self, difference: float) -> float | None:
        """Return how many times the prompts find a difference; None where no number does."""
        from scipy.optimize import brentq

        if self.smallest(_MOST) > difference:
            return None
        least = 1 / _MOST if self._ways is None else 2 / self._ways.n_clusters
        if self.smallest(least) <= difference:
            return least
        return exp(brentq(lambda t: self.smallest(exp(t)) - difference, log(least), log(_MOST), xtol=1e-13))

    def _critical(self, variance: float, times: float) -> float:
        if self._ways is None:
            return NormalDist().inv_cdf(1 - self._alpha / 2)
        share = (self._between + (self._seeds - self._between) / times) / variance
        return critical(self._alpha, min(1.0, share), self._ways.n_seeds, round(times * self._ways.n_clusters))


def _row(task: str, method: str, gap: Gaps, seen: _Seen, difference: float | None) -> dict[str, object]:
    n = len(set(gap.ids))
    times = None if difference is None else seen.times(difference)
    return {
        "task": task,
        "method": method,
        "sd": seen.error * sqrt(n),
        "n_examples": n,
        **({} if difference is None else {"n_needed": None if times is None else max(2, ceil(times * n - 1e-6))}),
        "smallest": seen.smallest(1),
        "smallest_2x": seen.smallest(2),
        "smallest_4x": seen.smallest(4),
    }
