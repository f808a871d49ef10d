"""The contract suite: run every invariant on a method, on tiny random models of every family."""

import inspect
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from steerbench import tiny
from steerbench.contract_case import Case
from steerbench.errors import SteerbenchError, suggest
from steerbench.invariants import INVARIANTS, UP_TO_ROUNDING, Invariant
from steerbench.method import Method
from steerbench.progress import Progress, silent
from steerbench.spec import build, parse


class Result(NamedTuple):
    """An invariant on a family: `problem` says what is broken; None means that it holds."""

    family: str
    invariant: str
    problem: str | None


def families(name: str | None) -> list[str]:
    """Return the family of that name, or all. Raises SteerbenchError for an unknown one."""
    if name is not None and name not in tiny.FAMILIES:
        raise SteerbenchError(suggest("family", name, list(tiny.FAMILIES)))
    return list(tiny.FAMILIES) if name is None else [name]


def check_method(text: str, on: Sequence[str], progress: Progress = silent) -> list[Result]:
    """Run every invariant on a method such as `caa:strength=2` or `caa+static_prompt`, on tiny models."""
    specs = parse(text)
    if len(specs) > 1:
        raise SteerbenchError(f"{text!r} are {len(specs)} methods; check one at a time, or compose them with '+'.")
    method = Method(specs[0], build(specs[0]))
    results: list[Result] = []
    with progress(f"check {text}", len(on) * len(INVARIANTS)) as advance:
        for family in on:
            for result in check_family(method, family):
                results.append(result)
                advance(1)
    return results


def check_family(method: Method, family: str) -> Iterator[Result]:
    """Run every invariant on one fit; if one of them finds anything, run each on a fit of its own.

    So what is broken is named by its own invariant alone, whatever a broken method left behind for those that follow.
    """
    whole = holds_on_one_fit(method, family)
    for invariant in INVARIANTS:
        problem = None if whole else check(method, family, invariant)
        yield Result(family, (invariant.__doc__ or "").strip(), problem)


def holds_on_one_fit(method: Method, family: str) -> bool:
    """Say whether every invariant holds, each with an unused copy of one steering, and the model is then as it was."""
    try:
        case = Case.fitted(method, family)
        return all(invariant(case.untouched()) is None for invariant in INVARIANTS) and not case.changed(case.before)
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
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
