"""What the tests of the contract share."""

import sys
from collections.abc import Iterator

import pytest

from steerbench.plugins import registry


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the plugins of a test."""
    monkeypatch.setattr(registry, "_files", {})
    yield
    for name in [name for name in sys.modules if name.startswith("steerbench_plugins.")]:
        del sys.modules[name]
