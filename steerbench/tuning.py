"""Choose hyperparameters on the validation split: the same number of trials for every method, and none on test."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from steerbench.candidates import Knobs, candidate, knobs_of, searched
from steerbench.errors import SteerbenchError
from steerbench.intervals import TOLERANCE
from steerbench.method import Method
from steerbench.seeds import seed_for
from steerbench.steerer import FitContext
from steerbench.steering import Steering
from steerbench.validation import Validation


class Tuned(NamedTuple):
    """A method with the hyperparameters that were chosen, and what was tried: `Record.tuning`."""

    method: Method
    report: dict[str, Any]


def tune(method: Method, context: FitContext, validation: Validation, budget: int) -> Tuned:
    """Try at most `budget` candidates and keep the one with the highest score; the first wins a tie.

    The method comes back as it is where the budget is 0 or nothing is left to search. A candidate that ends with a
    SteerbenchError is kept in the report and never chosen. Raises SteerbenchError if all of them end so.
    """
    knobs = knobs_of(method)
    if not budget or not knobs:
        return Tuned(method, {})
    candidates = [candidate(method, knobs, point) for point in _draw(method, knobs, budget, context.seed)]
    trials: list[dict[str, Any]] = []
    with context.progress(f"tune {method.spec}", len(candidates)) as advance:
        for one in candidates:
            trials.append({"hyperparameters": searched(one, knobs), **attempt(one, context, validation)})
            advance(1)
    best = _best(method, trials)
    return Tuned(candidates[best], report_of(validation.objective, context, validation, trials, best))


def report_of(
    objective: str, context: FitContext, validation: Validation, trials: Sequence[Mapping[str, Any]], best: int
) -> dict[str, Any]:
    """Return what a record keeps: the objective, the unsteered model's scores, every trial, and the chosen one."""
    return {
        "objective": objective,
        "split": "validation",
        "n": len(validation.examples),
        "unsteered": validation.scores(Steering(), context),
        "trials": list(trials),
        "chosen": trials[best]["hyperparameters"],
    }


def attempt(one: Method, context: FitContext, validation: Validation) -> dict[str, Any]:
    """Return the scores of a candidate, or the sentence it ended with."""
    try:
        steering = one.fit(replace(context, report={}))  # the record's is that of the candidate chosen
        return dict(validation.scores(steering, context))
    except SteerbenchError as error:
        return {"error": str(error)}


def none_measured(method: Method, trials: Sequence[Mapping[str, Any]]) -> SteerbenchError:
    """Return the error of a method none of whose candidates could be measured."""
    first = ", ".join(f"{name}={value}" for name, value in trials[0]["hyperparameters"].items())
    return SteerbenchError(
        f"none of the {len(trials)} trials of {method.spec} could be measured; the first, {first}: "
        f"{trials[0].get('error', 'its KL is not known.')}"
    )


def _draw(method: Method, knobs: Knobs, budget: int, seed: int) -> list[dict[str, Any]]:
    """Return distinct points of the joint space: the whole grid, in its order, where the budget allows it.

    Seeded by the names of the parts and not by their settings: two spellings of one method must draw the same.
    """
    from sklearn.model_selection import ParameterGrid, ParameterSampler

    space = {label: knob.values for label, knob in knobs.items()}
    grid = ParameterGrid(space)
    if len(grid) <= budget:
        return list(grid)
    state = seed_for(seed, "tune", *(part.name for part in method.spec.parts)) % 2**32
    return list(ParameterSampler(space, budget, random_state=state))


def _best(method: Method, trials: Sequence[Mapping[str, Any]]) -> int:
    """Return the index of the first trial with the highest score, as far as the batch size does not change it."""
    scores = {i: trial["score"] for i, trial in enumerate(trials) if "score" in trial}
    if not scores:
        raise none_measured(method, trials)
    return next(i for i, score in scores.items() if score >= max(scores.values()) - TOLERANCE)
