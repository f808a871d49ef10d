"""The contract suite: run every invariant on a method, on tiny random models of every family."""

import inspect
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from steerbench.bench.method import Method
from steerbench.contract import tiny
from steerbench.contract.case import Case
from steerbench.contract.invariants import INVARIANTS, UP_TO_ROUNDING, Invariant
from steerbench.errors import SteerbenchError, suggest
from steerbench.plugins.spec import build, parse
from steerbench.progress import Progress, silent
from steerbench.steering.steering import Steering

FIT = "Fit returns a steering."
"""Stands for all invariants of a family on which there is no fit to check them on."""


class Result(NamedTuple):
    """An invariant on a family: `problem` says what is broken; None means that it holds."""

    family: str
    invariant: str
    """Its sentence, or `FIT`."""
    problem: str | None


def families(name: str | None) -> list[str]:
    """Return the family of that name, or all. Raises SteerbenchError for an unknown one."""
    if name is not None and name not in tiny.FAMILIES:
        raise SteerbenchError(suggest("family", name, list(tiny.FAMILIES)))
    return list(tiny.FAMILIES) if name is None else [name]


def check_method(text: str, on: Sequence[str], progress: Progress = silent) -> list[Result]:
    """Run every invariant on a method such as `caa:strength=2` or `caa+static_prompt`, on tiny models.

    Where `fit` fails, that is the one result of the family.
    """
    specs = parse(text)
    if len(specs) > 1:
        raise SteerbenchError(f"{text!r} are {len(specs)} methods; check one at a time, or compose them with '+'.")
    method = Method(specs[0], build(specs[0]))
    results: list[Result] = []
    with progress(f"fit {text}", len(on)) as advance:
        for family in on:
            if problem := fit_problem(method, family):
                results.append(Result(family, FIT, problem))
            advance(1)
    fitted = [family for family in on if family not in {result.family for result in results}]
    with progress(f"check {text}", len(fitted)) as advance:
        for family in fitted:
            results += check_family(method, family, progress)
            advance(1)
    return results


def fit_problem(method: Method, family: str) -> str | None:
    """Say why a method cannot be fitted on a family at all; None if it can."""
    try:
        method.fit(Case(tiny.language_model(family), method, Steering(), {}).context())
    except Exception as error:  # a method may fail in any way; the suite says where
        return _sentence(error, method)
    return None


def check_family(method: Method, family: str, progress: Progress = silent) -> Iterator[Result]:
    """Run every invariant on one fit; if one of them finds anything, run each on a fit of its own.

    So what is broken is named by its own invariant alone, whatever a broken method left behind for those that follow.
    """
    if holds_on_one_fit(method, family, progress):
        yield from (Result(family, _title(invariant), None) for invariant in INVARIANTS)
        return
    with progress(f"{family}, each invariant by itself", len(INVARIANTS)) as advance:
        for invariant in INVARIANTS:
            yield Result(family, _title(invariant), check(method, family, invariant))
            advance(1)


def _title(invariant: Invariant) -> str:
    return (invariant.__doc__ or "").strip()


def holds_on_one_fit(method: Method, family: str, progress: Progress = silent) -> bool:
    """Say whether every invariant holds, each with an unused copy of one steering, and the model is then as it was."""
    with progress(family, len(INVARIANTS)) as advance:
        try:
            case = Case.fitted(method, family)
            for invariant in INVARIANTS:
                if invariant(case.untouched()) is not None:
                    return False
                advance(1)
            return not case.changed(case.before)
        except Exception:  # whatever it is, a fit for each invariant says whose it is
            return False


def check(method: Method, family: str, invariant: Invariant) -> str | None:
    """Run one invariant on a fit of its own.

    A method with a threshold, such as a ReLU, may by chance be so near to it that rounding decides. So where results
    are compared up to rounding, a problem counts if it is there for another seed, too.
    """
    problem = _check(method, family, invariant, seed=0)
    if problem and invariant in UP_TO_ROUNDING:
        return next(filter(None, (_check(method, family, invariant, seed) for seed in (1, 2, 3))), None)
    return problem


def _check(method: Method, family: str, invariant: Invariant, seed: int) -> str | None:
    """Run one invariant; an exception of the method is a broken invariant."""
    try:
        return invariant(Case.fitted(method, family, seed))
    except Exception as error:  # a method may fail in any way; the suite says where
        return _sentence(error, method)


def _sentence(error: Exception, method: Method) -> str:
    """Return what went wrong, and the line of the method's own file."""
    if isinstance(error, SteerbenchError):
        return str(error)
    files = {inspect.getfile(type(s)) for s in method.steerers}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
