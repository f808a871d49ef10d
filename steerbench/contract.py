"""The contract suite: run every invariant on a method, on tiny random models of every family."""

import inspect
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from steerbench import tiny
from steerbench.contract_case import Case
from steerbench.errors import SteerbenchError, suggest
from steerbench.invariants import INVARIANTS, UP_TO_ROUNDING, Invariant
from steerbench.method import Method
from steerbench.progress import Progress, silent
from steerbench.spec import build, parse
from steerbench.steering import Steering


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
    results = []
    with progress(f"check {text}", len(on) * len(INVARIANTS)) as advance:
        for family in on:
            for invariant in INVARIANTS:
                results.append(Result(family, (invariant.__doc__ or "").strip(), check(method, family, invariant)))
                advance(1)
    return results


def check(method: Method, family: str, invariant: Invariant) -> str | None:
    """Run one invariant on a fresh model.

    A method with a threshold, such as a ReLU, may by chance be so near to it that rounding decides. So where results
    are compared up to rounding, a problem counts if it is there for another seed, too.
    """
    problem = _check(method, family, invariant, seed=0)
    if problem and invariant in UP_TO_ROUNDING:
        return next(filter(None, (_check(method, family, invariant, seed) for seed in (1, 2, 3))), None)
    return problem


def _check(method: Method, family: str, invariant: Invariant, seed: int) -> str | None:
    """Run one invariant; an exception of the method is a broken invariant."""
    case = Case(tiny.language_model(family), method, Steering(), {}, seed)
    case.before = case.state()
    try:
        case.steering = method.fit(case.context())
        return invariant(case)
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
