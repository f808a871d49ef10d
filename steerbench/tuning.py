"""Choose hyperparameters on the validation split: the same number of trials for every method, and none on test."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from steerbench.errors import SteerbenchError
from steerbench.generation import generate
from steerbench.method import Method
from steerbench.metrics.win_rate import TOLERANCE
from steerbench.seeds import seed_for
from steerbench.spec import hyperparameters
from steerbench.steerer import FitContext
from steerbench.steering import Steering
from steerbench.task import Example


class Tuned(NamedTuple):
    """A method with the hyperparameters that did best, and what was tried: `Record.tuning`."""

    method: Method
    report: dict[str, Any]


class _Knob(NamedTuple):
    """A hyperparameter to search."""

    part: int
    """Index of its part in the method."""
    name: str
    values: Sequence[Any]


def tune(method: Method, context: FitContext, validation: Sequence[Example], budget: int) -> Tuned:
    """Try at most `budget` candidates and keep the one with the highest mean reward; the first wins a tie.

    The method comes back as it is where the budget is 0 or nothing is left to search. A candidate that ends with a
    SteerbenchError is kept in the report and never chosen. Raises SteerbenchError if all of them end so.
    """
    knobs = dict(_knobs(method))
    if not budget or not knobs:
        return Tuned(method, {})
    candidates = [_candidate(method, knobs, point) for point in _draw(method, knobs, budget, context.seed)]
    trials: list[dict[str, Any]] = []
    with context.progress(f"tune {method.spec}", len(candidates)) as advance:
        for candidate in candidates:
            trials.append({"hyperparameters": _values(candidate, knobs), **_attempt(candidate, context, validation)})
            advance(1)
    best = _best(method, trials)
    report = {
        "objective": "reward",
        "split": "validation",
        "n": len(validation),
        "unsteered": _score(Steering(), context, validation),
        "trials": trials,
        "chosen": trials[best]["hyperparameters"],
    }
    return Tuned(candidates[best], report)


def _knobs(method: Method) -> Iterator[tuple[str, _Knob]]:
    """Yield what is searched: as `field`, composed as `part.field`, or `part[1].field` where a part is there twice."""
    for i, (label, space) in enumerate(zip(method.labels, method.spaces, strict=True)):
        prefix = f"{label}." if len(method.labels) > 1 else ""
        for field, values in space.items():
            yield prefix + field, _Knob(i, field, values)


def _draw(method: Method, knobs: Mapping[str, _Knob], budget: int, seed: int) -> list[dict[str, Any]]:
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


def _candidate(method: Method, knobs: Mapping[str, _Knob], point: Mapping[str, Any]) -> Method:
    new: list[dict[str, Any]] = [{} for _ in method.steerers]
    for label, value in point.items():
        new[knobs[label].part][knobs[label].name] = value
    return method._replace(steerers=[replace(s, **values) for s, values in zip(method.steerers, new, strict=True)])


def _values(candidate: Method, knobs: Mapping[str, _Knob]) -> dict[str, Any]:
    """Return what was searched as the plain JSON values of a record."""
    plain = [hyperparameters(steerer) for steerer in candidate.steerers]
    return {label: plain[knob.part][knob.name] for label, knob in knobs.items()}


def _attempt(candidate: Method, context: FitContext, validation: Sequence[Example]) -> dict[str, Any]:
    """Return the score of a candidate, or the sentence it ended with."""
    try:
        steering = candidate.fit(replace(context, report={}))  # the record's is that of the candidate chosen
        return {"score": _score(steering, context, validation)}
    except SteerbenchError as error:
        return {"error": str(error)}


def _score(steering: Steering, context: FitContext, validation: Sequence[Example]) -> float:
    """Return the mean reward on validation, computed once per steering: many fits are the same for every seed."""
    sampled = context.decoding.temperature > 0  # greedy responses are the same for every seed
    key = ("score on validation", steering.digest(), context.seed if sampled else None)
    return context.once(key, lambda: _mean_reward(steering, context, validation))


def _mean_reward(steering: Steering, context: FitContext, validation: Sequence[Example]) -> float:
    prompts = [e.prompt for e in validation]
    responses = generate(
        context.lm,
        prompts,
        steering,
        context.decoding,
        seed=context.seed,
        reward=context.reward,
        batch_size=context.batch_size,
        progress=context.progress,
    )
    return float(context.reward.score(prompts, [r.text for r in responses], context.progress).double().mean())


def _best(method: Method, trials: Sequence[Mapping[str, Any]]) -> int:
    """Return the index of the first trial with the highest score, as far as the batch size does not change it."""
    scores = {i: trial["score"] for i, trial in enumerate(trials) if "score" in trial}
    if not scores:
        first = ", ".join(f"{name}={value}" for name, value in trials[0]["hyperparameters"].items())
        raise SteerbenchError(
            f"none of the {len(trials)} trials of {method.spec} could be measured; the first, {first}: "
            f"{trials[0]['error']}"
        )
    return next(i for i, score in scores.items() if score >= max(scores.values()) - TOLERANCE)
