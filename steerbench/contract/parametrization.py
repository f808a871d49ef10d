"""The contract in an author's own pytest: one test for each invariant and family."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerbench.bench.method import Method, methods_of
from steerbench.contract.check import check, families
from steerbench.contract.invariants import INVARIANTS, Invariant
from steerbench.errors import SteerbenchError
from steerbench.learn.fitting import MethodLike
from steerbench.plugins.registry import add_plugin

if TYPE_CHECKING:
    import pytest


def parametrize(method: MethodLike | Path, on: Sequence[str] | None = None) -> "pytest.MarkDecorator":
    """Return a decorator for a test function that takes `check` and calls it.

        @steerbench.contract.parametrize("my_method.py")
        def test_contract(check): check()

    `method` is a Python file, a specification such as `caa:strength=2`, a Steerer or its class; `on` names families:
    all by default. `check()` fails with the sentence that says what is broken. Needs pytest.
    """
    import pytest

    checked = _method(method)
    cases = [
        pytest.param(partial(_hold, checked, family, invariant), id=f"{invariant.__name__}-{family}")
        for family in (families(None) if on is None else [one for name in on for one in families(name)])
        for invariant in INVARIANTS
    ]
    return pytest.mark.parametrize("check", cases)


def _method(given: Any) -> Method:
    if isinstance(given, Path) or (isinstance(given, str) and given.endswith(".py")):
        kind, given = add_plugin(given)
        if kind != "methods":
            raise SteerbenchError(f"{given} is a task; the contract is one of methods.")
    found = methods_of(given)
    if len(found) != 1:
        raise SteerbenchError(f"{given!r} are {len(found)} methods; check one at a time, or compose them with '+'.")
    return found[0]


def _hold(method: Method, family: str, invariant: Invariant) -> None:
    import pytest

    if problem := check(method, family, invariant):
        pytest.fail(problem, pytrace=False)
