"""Fixtures shared by all tests. Nothing here reaches the network."""

import gc
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import kept_models
import pytest
import torch
from brief_timing import brief
from given_options import last_of_each
from thorough import mostly_slow
from typer.testing import CliRunner, Result

from steerbench.bench import run as harness
from steerbench.bench.protocol import Protocol
from steerbench.cli import app, stages
from steerbench.contract import tiny
from steerbench.decoding import Decoding
from steerbench.models.language_model import LanguageModel
from steerbench.plugins import registry

torch.set_num_threads(1)  # for tiny models one thread beats two


UNLIKE = ("gemma2", "gpt2")
"""Families that differ in norms, positions, windows and fused maps. The contract meets all of them."""


LONGEST = (
    "test_contract.py",
    "test_broken_methods.py",
    "test_kinds_of_parts.py",
    "test_cli.py",
    "test_report.py",
    "test_testbed.py",
    "test_examples.py",
    "test_latency_command.py",
    "test_bad_input.py",
    "test_generation.py",
    "test_re_control.py",
    "test_harness.py",
)
"""Files that take longest. They come first, so that no process is left with one of them when all else is done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of every later collection of garbage: it lives as long as the tests."""
    import hypothesis  # noqa: F401  # as it loads, it looks for who refers to what, and would not find what is frozen

    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time no run, unless a test asks for it: that takes as long as all else."""
    monkeypatch.setattr(harness, "latency", brief)


@pytest.fixture(autouse=True)
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load and try out a model once, and copy it from then on, but where loading is what is tested or timed."""
    if request.path.parent.name not in ("models", "benchmarks"):
        kept_models.keep(monkeypatch)


@pytest.fixture(params=mostly_slow(sorted(tiny.FAMILIES), UNLIKE.__contains__))
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


@pytest.fixture(scope="session")
def protocol(world: Path) -> Protocol:
    """A run on the tiny world that takes about a second."""
    return Protocol(
        task="hh_rlhf",
        model=str(world / "lm"),
        reward_model=str(world / "reward"),
        encoder=str(world / "encoder"),
        data=world / "hh_rlhf.jsonl",
        n_examples=4,
        n_train=6,
        decoding=Decoding(max_new_tokens=6),
    )


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Call the command line in this process: `cli("list", "methods")`. Plugins are forgotten afterwards."""
    monkeypatch.setattr(registry, "_files", dict(registry._files))
    monkeypatch.setattr(stages, "LASTING", math.inf)  # what a busy machine makes slow is no other output
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def run_cli(cli: Callable[..., Result], run_args: list[str], tmp_path: Path) -> Callable[..., Result]:
    """Call `steerbench run` on the tiny world; a later option replaces an earlier one."""
    return lambda *args: cli("run", *last_of_each([*run_args, "--out", tmp_path / "runs", *args]))


@pytest.fixture(scope="session")
def run_args(world: Path) -> list[str]:
    """The options of a run on the tiny world that takes about a second."""
    models = {"--model": "lm", "--reward-model": "reward", "--encoder": "encoder", "--data": "hh_rlhf.jsonl"}
    sizes = ["--n-examples", "4", "--n-train", "6", "--max-new-tokens", "6"]
    return [*(text for option, name in models.items() for text in (option, str(world / name))), *sizes]


@pytest.fixture(scope="session")
def other_reward(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with the scores of the first and another identity."""
    folder = tmp_path_factory.mktemp("other") / "reward"
    shutil.copytree(world / "reward", folder)
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text() + "\n")
    return folder
