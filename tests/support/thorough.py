"""Which cases run by default, and which only with all tests (`make test-all`)."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], quick: Callable[[Any], bool]) -> list[Any]:
    """Return the cases as parameters; those that are not quick are marked as slow."""
    marks = {True: (), False: (pytest.mark.slow,)}
    return [pytest.param(*(c if isinstance(c, tuple) else (c,)), marks=marks[bool(quick(c))]) for c in cases]
