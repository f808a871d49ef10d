"""vLLM itself, in an environment of its own: `make test-vllm`. Elsewhere these tests are skipped."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from steerbench import LanguageModel
from steerbench.engine.backends.vllm_engine import VllmEngine

MODEL = "testbed"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.parent == Path(__file__).parent]
    for item in ours:
        item.add_marker(pytest.mark.filterwarnings("ignore"))  # vLLM has its own
        if not find_spec("vllm"):
            item.add_marker(pytest.mark.skip(reason="vllm is not installed here; make test-vllm makes a place for it"))


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    return LanguageModel.load(MODEL)


@pytest.fixture(scope="session")
def engine() -> Iterator[VllmEngine]:
    """One process for all: it takes half a minute to start."""
    engine = VllmEngine(MODEL)
    yield engine
    engine.close()
