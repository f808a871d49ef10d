"""Fixtures shared by all tests. Nothing here reaches the network."""

import os
from pathlib import Path

import pytest
import torch

from steerbench import tiny
from steerbench.lm import LanguageModel

torch.set_num_threads(1)  # for tiny models one thread beats two


@pytest.fixture(params=sorted(tiny.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lm(family: str) -> LanguageModel:
    return tiny.language_model(family)


@pytest.fixture
def llama() -> LanguageModel:
    return tiny.language_model("llama")


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real data and models, where a checkout has them."""
    folder = os.environ.get("STEERBENCH_ASSETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("STEERBENCH_ASSETS names no folder with real data and models")
    return Path(folder)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny random models and records: `lm`, `reward`, `encoder`, `hh_rlhf.jsonl`."""
    folder = tmp_path_factory.mktemp("world")
    tiny.build(folder)
    return folder
