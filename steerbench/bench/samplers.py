"""In which order tuning looks at the points of a space: coarse to fine, or as Optuna proposes."""

from collections.abc import Sequence
from typing import Any, Protocol

from steerbench.bench.protocol import COARSE, SamplerName
from steerbench.bench.search_space import Cell, SearchSpace
from steerbench.records.search_range import is_ordered
from steerbench.records.statistics import TOLERANCE

_REPEATS = 20
"""Proposals in a row of points that were tried, after which a step is taken instead."""


class Sampler(Protocol):
    """Says which point to try next."""

    def next(self, tried: Sequence[Cell], scores: Sequence[float | None]) -> Cell:
        """Return a cell not tried; `scores` has one for each that was, None where it ended with an error."""


def sampler_of(name: SamplerName, space: SearchSpace, n_trials: int) -> Sampler:
    """Return the sampler of this name for so many trials; a space of no more points is tried whole, in its order."""
    if name == COARSE or space.size <= n_trials:
        return CoarseToFine(space, n_trials)
    return OptunaSampler(space)


class CoarseToFine:
    """One half of the trials is spread over the space, and each further one is a step from the best so far."""

    def __init__(self, space: SearchSpace, n_trials: int) -> None:
        self._space = space
        self._spread = space.coarse(n_trials if space.size <= n_trials else (n_trials + 1) // 2)

    def next(self, tried: Sequence[Cell], scores: Sequence[float | None]) -> Cell:
        """Return the next of those spread, or a neighbour of the best."""
        left = [cell for cell in self._spread if cell not in tried]
        return left[0] if left else self._space.neighbour(tried, tried[leading(scores) or 0])


class OptunaSampler:
    """Optuna's tree-structured Parzen estimator (Watanabe 2023, arXiv 2304.11127), on the same points.

    A number is proposed by its place among the values, everything else as a category. What was tried is not tried
    again: where Optuna insists, a step from the best is taken.
    """

    def __init__(self, space: SearchSpace) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._optuna = space, optuna
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=space.seed))
        self._kinds: dict[str, Any] = {
            name: optuna.distributions.IntDistribution(0, len(values) - 1)
            if is_ordered(values)
            else optuna.distributions.CategoricalDistribution(range(len(values)))
            for name, values in space.values.items()
        }
        self._asked: dict[Cell, Any] = {}
        self._told = 0

    def next(self, tried: Sequence[Cell], scores: Sequence[float | None]) -> Cell:
        """Tell what has been measured since, and ask."""
        for cell, score in zip(tried[self._told :], scores[self._told :], strict=True):
            self._tell(self._asked.pop(cell, None) or self._at(cell), score)
        self._told = len(tried)
        for _ in range(_REPEATS):
            trial = self._study.ask(self._kinds)
            cell = tuple(int(trial.params[name]) for name in self._space.values)
            if cell not in tried:
                self._asked[cell] = trial
                return cell
        return self._space.neighbour(tried, tried[leading(scores) or 0])

    def _at(self, cell: Cell) -> Any:
        """Return a trial at a cell that was not asked for."""
        self._study.enqueue_trial(dict(zip(self._space.values, cell, strict=True)))
        return self._study.ask(self._kinds)

    def _tell(self, trial: Any, score: float | None) -> None:
        failed = self._optuna.trial.TrialState.FAIL if score is None else None
        self._study.tell(trial, score, state=failed)


def leading(scores: Sequence[float | None]) -> int | None:
    """Return the index of the first trial with the highest score, as far as the batch size does not change it."""
    measured = [score for score in scores if score is not None]
    return next((i for i, s in enumerate(scores) if s is not None and s >= max(measured) - TOLERANCE), None)
