"""Choose hyperparameters on the validation split, by an objective or for one KL from the unsteered model.

The same number of trials for every method, and none on test.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp, inf, log
from typing import Any, NamedTuple

from steerbench.bench.method import Knobs, Method, at_point, knobs_of, searched, strength_of
from steerbench.bench.protocol import COARSE, SamplerName
from steerbench.bench.samplers import leading, sampler_of
from steerbench.bench.search_space import SearchSpace
from steerbench.bench.validation import Validation
from steerbench.errors import SteerbenchError
from steerbench.learn.context import FitContext
from steerbench.records.search_range import ends_of
from steerbench.seeds import seed_for
from steerbench.steering.steering import Steering

KL_TOLERANCE = 0.05
"""Relative distance to the target that counts as matched."""
_ALIKE, _CLOSE = 0.01, 1.5
"""Two strengths that differ by less and enclose the target are matched too, where one has a KL within a factor of it:
between them, a few tokens that fall the other way are what varies."""
_STEP, _FAR = 4.0, 64.0
"""Most that one step may multiply or divide the strength by, beyond what was tried; and from three trials of one KL."""


class Tuned(NamedTuple):
    """A method with the hyperparameters that were chosen, and what was tried: `Record.tuning`."""

    method: Method
    report: dict[str, Any]


def tune(
    method: Method, context: FitContext, validation: Validation, budget: int, sampler: SamplerName = COARSE
) -> Tuned:
    """Try at most `budget` candidates and keep the one with the highest score; the first wins a tie.

    The first is the method as it is, so that tuning never loses to defaults that it did not try. Of its space, what has
    no more points than are left is tried whole, in its order; of a larger one the sampler says what is tried. The
    method comes back as it is where the budget is 0 or nothing is left to search. A candidate that ends with a
    SteerbenchError is kept in the report and never chosen. Raises SteerbenchError if all of them end so.
    """
    knobs = knobs_of(method)
    if not budget or not knobs:
        return Tuned(method, {})
    space = _space(method, knobs, context.seed)
    here = space.cell(searched(method, knobs))
    known = 0 if here is None else 1
    elsewhere = min(budget - 1, space.size - known)
    proposals = sampler_of(sampler, space, known + elsewhere)
    candidates, cells = [method], [here]
    trials: list[dict[str, Any]] = []
    with context.progress(f"tune {method.spec}", 1 + elsewhere) as advance:
        while True:
            one = candidates[-1]
            trials.append({"hyperparameters": searched(one, knobs), **attempt(one, context, validation)})
            advance(1)
            if len(trials) > elsewhere:
                break
            scores = {cell: score for cell, score in zip(cells, _scores(trials), strict=True) if cell is not None}
            cells.append(cell := proposals.next(list(scores), list(scores.values())))
            candidates.append(at_point(method, knobs, space.point(cell)))
    best = _best(method, trials)
    values = {label: list(values) for label, values in space.values.items()}
    report = _report(validation.objective, context, validation, trials, best)
    return Tuned(candidates[best], {**report, "searched": values, "at_the_end": ends_of(values, report["chosen"])})


def match(method: Method, context: FitContext, validation: Validation, target: float, budget: int) -> Tuned:
    """Find the strength at which KL(steered || unsteered) per token on validation is `target` nats.

    What is moved is the first number that the method searches; the rest stays as given. A few trials of a secant in
    log-log space, `budget` at most; the nearest is kept. The report says whether it is within `KL_TOLERANCE`, or of two
    strengths that are all but equal and enclose the target. A method without a strength comes back as it is, with an
    empty report. Raises SteerbenchError if no trial can be measured.
    """
    found = strength_of(method)
    if found is None:
        return Tuned(method, {})
    label, knob = found
    knobs = {label: knob}
    candidates: list[Method] = []
    trials: list[dict[str, Any]] = []
    tried: dict[float, float] = {}
    with context.progress(f"match {method.spec}", budget) as advance:
        while len(trials) < budget and not _is_matched(tried, target) and _flat_over(tried) < _FAR:
            strength = min(_next(tried, target, sorted(knob.values)[len(knob.values) // 2]), knob.most)
            if strength in tried or (one := _allowed(method, knobs, {label: strength})) is None:
                break  # and more, or less, is not allowed
            candidates.append(one)
            trials.append(
                {"hyperparameters": searched(candidates[-1], knobs), **attempt(candidates[-1], context, validation)}
            )
            if "kl" not in trials[-1] and trials[-1].get("length"):
                break  # and no other strength will tell it
            tried[strength] = trials[-1].get("kl", inf)  # what cannot be measured was too strong
            advance(1)
    best = _nearest(method, trials, target)
    report = _report("kl", context, validation, trials, best)
    return Tuned(candidates[best], {**report, "target": target, "matched": _is_matched(tried, target)})


def _report(
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
    start = time.perf_counter()
    try:
        steering = one.fit(replace(context, report={}))  # the record's is that of the candidate chosen
        context.fit_seconds.append(time.perf_counter() - start)
        return dict(validation.scores(steering, context))
    except SteerbenchError as error:
        return {"error": str(error)}


def _none_measured(method: Method, trials: Sequence[Mapping[str, Any]]) -> SteerbenchError:
    """Return the error of a method none of whose candidates could be measured."""
    first = ", ".join(f"{name}={value}" for name, value in trials[0]["hyperparameters"].items())
    return SteerbenchError(
        f"none of the {len(trials)} trials of {method.spec} could be measured; the first, {first}: "
        f"{trials[0].get('error', 'its KL is not known.')}"
    )


def _space(method: Method, knobs: Knobs, seed: int) -> SearchSpace:
    """Return the joint space, seeded by the names of the parts and not by their settings.

    Two spellings of one method must draw the same.
    """
    state = seed_for(seed, "tune", *(part.name for part in method.spec.parts)) % 2**32
    return SearchSpace({label: knob.values for label, knob in knobs.items()}, state)


def _best(method: Method, trials: Sequence[Mapping[str, Any]]) -> int:
    """Return the index of the leading trial. Raises SteerbenchError if none was measured."""
    best = leading(_scores(trials))
    if best is None:
        raise _none_measured(method, trials)
    return best


def _scores(trials: Sequence[Mapping[str, Any]]) -> list[float | None]:
    return [trial.get("score") for trial in trials]


def _near(kl: float, target: float) -> bool:
    return abs(kl / target - 1) <= KL_TOLERANCE


def _allowed(method: Method, knobs: Knobs, point: Mapping[str, float]) -> Method | None:
    """Return the method at a strength, or None where it takes no such number."""
    try:
        return at_point(method, knobs, point)
    except SteerbenchError:
        return None


def _is_matched(tried: Mapping[float, float], target: float) -> bool:
    below, above = _enclosing(tried, target)
    alike = below is not None and above is not None and above / below - 1 < _ALIKE
    close = any(target / _CLOSE <= kl <= target * _CLOSE for kl in tried.values())
    return (alike and close) or any(_near(kl, target) for kl in tried.values())


def _flat_over(tried: Mapping[float, float]) -> float:
    """Return over how many times the strength the last trials have one KL; 1 where fewer than three have."""
    strengths, kls = list[float](), list[float]()
    for strength, kl in reversed(list(tried.items())):
        kls.append(kl)
        if max(kls) == inf or max(kls) > min(kls) * (1 + KL_TOLERANCE):
            break
        strengths.append(strength)
    return max(strengths) / min(strengths) if len(strengths) >= 3 else 1.0


def _enclosing(tried: Mapping[float, float], target: float) -> tuple[float | None, float | None]:
    """Return the strongest that is too weak, and the weakest beyond it that is not; None where there is none."""
    below = max((s for s, kl in tried.items() if kl < target), default=None)
    above = min((s for s, kl in tried.items() if kl >= target and (below is None or s > below)), default=None)
    return below, above


def _next(tried: Mapping[float, float], target: float, first: float) -> float:
    """Return the strength to try next: between the two that enclose the target, or a bounded step beyond all."""
    if not tried:
        return float(first)
    below, above = _enclosing(tried, target)
    if below is None or above is None:
        end = below if below is not None else min(tried)
        ratio = target / tried[end] if tried[end] else inf
        if _flat_over(tried) >= _STEP:
            return float(end * (_FAR if ratio > 1 else 1 / _FAR))
        return float(end * min(_STEP, max(1 / _STEP, ratio ** (1 / _power(tried, end)))))
    left, right = tried[below], tried[above]
    share = 0.5
    if left > 0 and right < inf:
        share = min(0.9, max(0.1, log(target / left) / log(right / left)))
    return exp((1 - share) * log(below) + share * log(above))


def _power(tried: Mapping[float, float], end: float) -> float:
    """Return with which power of the strength KL grows at an end: between it and its neighbour, or of a small edit."""
    known = [s for s, kl in tried.items() if s != end and 0 < kl < inf]
    if not known or not tried[end]:
        return 2.0
    near = min(known, key=lambda s: abs(log(s / end)))
    return max(0.5, log(tried[end] / tried[near]) / log(end / near))


def _nearest(method: Method, trials: Sequence[Mapping[str, Any]], target: float) -> int:
    measured = [i for i, trial in enumerate(trials) if "kl" in trial]
    if not measured:
        raise _none_measured(method, trials)
    return min(measured, key=lambda i: abs(log(max(trials[i]["kl"], 1e-12) / target)))
