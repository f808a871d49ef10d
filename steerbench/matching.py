"""Give every method the same KL from the unsteered model, so that methods are compared at equal intervention."""

from collections.abc import Mapping, Sequence
from math import exp, inf, log
from typing import Any

from steerbench.candidates import candidate, searched, strength_of
from steerbench.method import Method
from steerbench.steerer import FitContext
from steerbench.tuning import Tuned, attempt, none_measured, report_of
from steerbench.validation import Validation

TOLERANCE = 0.05
"""Relative distance to the target that counts as matched."""
_STEP = 4.0
"""Most that one step may multiply or divide the strength by, beyond what was tried."""


def match(method: Method, context: FitContext, validation: Validation, target: float, budget: int) -> Tuned:
    """Find the strength at which KL(steered || unsteered) per token on validation is `target` nats.

    What is moved is the first number that the method searches; the rest stays as given. A few trials of a secant in
    log-log space, `budget` at most; the nearest is kept. The report says whether it is within `TOLERANCE`: a method
    without a strength comes back as it is, with an empty report. Raises SteerbenchError if no trial can be measured.
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
        while len(trials) < budget and not any(_near(kl, target) for kl in tried.values()):
            strength = _next(tried, target, sorted(knob.values)[len(knob.values) // 2])
            candidates.append(candidate(method, knobs, {label: strength}))
            trials.append(
                {"hyperparameters": searched(candidates[-1], knobs), **attempt(candidates[-1], context, validation)}
            )
            if "kl" not in trials[-1] and trials[-1].get("length"):
                break  # and no other strength will tell it
            tried[strength] = trials[-1].get("kl", inf)  # what cannot be measured was too strong
            advance(1)
    best = _nearest(method, trials, target)
    report = report_of("kl", context, validation, trials, best)
    return Tuned(candidates[best], {**report, "target": target, "matched": _near(trials[best]["kl"], target)})


def _near(kl: float, target: float) -> bool:
    return abs(kl / target - 1) <= TOLERANCE


def _next(tried: Mapping[float, float], target: float, first: float) -> float:
    """Return the strength to try next: between the two that enclose the target, or a bounded step beyond all."""
    if not tried:
        return float(first)
    below = max((s for s, kl in tried.items() if kl < target), default=None)
    above = min((s for s, kl in tried.items() if kl >= target and (below is None or s > below)), default=None)
    if below is None or above is None:
        end = below if below is not None else min(tried)
        ratio = target / tried[end] if tried[end] else inf
        return float(end * min(_STEP, max(1 / _STEP, ratio**0.5)))  # KL grows with the square of a small edit
    left, right = tried[below], tried[above]
    share = 0.5
    if left > 0 and right < inf:
        share = min(0.9, max(0.1, log(target / left) / log(right / left)))
    return exp((1 - share) * log(below) + share * log(above))


def _nearest(method: Method, trials: Sequence[Mapping[str, Any]], target: float) -> int:
    measured = [i for i, trial in enumerate(trials) if "kl" in trial]
    if not measured:
        raise none_measured(method, trials)
    return min(measured, key=lambda i: abs(log(max(trials[i]["kl"], 1e-12) / target)))
