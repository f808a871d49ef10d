"""What benchmarks share: two threads, and ratios that are shown side by side."""

from collections.abc import Iterator

import pytest
import torch
from side_by_side import Ratios


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ratios(request: pytest.FixtureRequest) -> Iterator[Ratios]:
    """Collect the ratios of a module, and print them in the end, whatever is captured."""
    found = Ratios()
    yield found
    manager = request.config.pluginmanager.getplugin("capturemanager")
    with manager.global_and_fixture_disabled():
        print("", *found.lines(), sep="\n")
