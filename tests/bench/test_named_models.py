"""A model that a part names is loaded by the engine, and its revision identifies the record."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steerbench.bench import run as harness
from steerbench.bench.protocol import Protocol
from steerbench.bench.setup import Options
from steerbench.bench.units import plan
from steerbench.engine import guidance
from steerbench.errors import SteerbenchError
from steerbench.models.revision import folder_revision
from steerbench.plugins import registry

PLUGIN = """
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import DecodingContext, LogitsPart


class Joined(LogitsProcessor):
    def __init__(self, context, weight):
        self.context, self.weight = context, weight

    def __call__(self, ids, scores):
        mask = torch.nn.functional.pad(self.context.mask, (0, ids.shape[1] - self.context.mask.shape[1]), value=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        expert = self.context.models["expert"]
        return scores + self.weight * expert.model(ids, mask, position_ids=positions).logits[:, -1]


class Expert(LogitsPart):
    def __init__(self, name: str, weight: float) -> None:
        self.name, self.weight = name, weight

    @property
    def models(self) -> Mapping[str, str]:
        return {{"expert": self.name}}

    def processor_in(self, context: DecodingContext) -> LogitsProcessor:
        assert context.reward.name and len(context.dialogues) == len(context.mask)
        return Joined(context, self.weight)


@dataclass(frozen=True, kw_only=True)
class Guided(Steerer):
    off = {{"weight": 0.0}}

    expert: str
    weight: float = 1.0

    @property
    def models(self) -> Sequence[str]:
        return {listed}

    def fit(self, context: FitContext) -> Steering:
        return Steering(logits=(Expert(self.expert, self.weight),))
"""


@pytest.fixture
def plug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    monkeypatch.setattr(registry, "_files", dict(registry._files))

    def make(listed: str) -> None:
        path = tmp_path / "guided.py"
        path.write_text(PLUGIN.format(listed=listed))
        registry.add_plugin(path)

    forget()
    yield make
    forget()


def forget() -> None:
    """What a new process would not know."""
    guidance.identified.cache_clear()
    guidance.loaded.cache_clear()


def test_the_revision_is_in_the_record_and_in_its_identity(
    plug: Callable[[str], None], protocol: Protocol, world: Path, tmp_path: Path
) -> None:
    plug("(self.expert,)")
    expert, options = tmp_path / "expert", Options(out=tmp_path / "runs", device="cpu")
    shutil.copytree(world / "lm", expert)
    method = f'guided:expert="{expert}"'
    first = harness.run(protocol, method, options)
    assert not first.failures
    record = first.records[-1]
    revision = folder_revision(expert)
    assert record.parts[0]["models"] == record.report["models"] == [revision]
    assert "models" not in first.records[0].parts[0]
    assert harness.run(protocol, method, options).found == 2
    forget()
    config = json.loads((expert / "config.json").read_text())
    (expert / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    again = harness.run(protocol, method, options)
    assert again.found == 1
    assert again.records[-1].identity != record.identity
    assert list(again.records[-1].examples["kl"]) != list(record.examples["kl"])


def test_a_model_that_the_method_does_not_list_is_refused(
    plug: Callable[[str], None], protocol: Protocol, world: Path, tmp_path: Path
) -> None:
    plug("()")
    outcome = harness.run(protocol, f'guided:expert="{world / "lm"}"', Options(out=tmp_path / "runs", device="cpu"))
    (failure,) = outcome.failures
    assert failure.message.startswith("a part of Guided names the model ")
    assert failure.message.endswith("list it there, so that the model's revision identifies the record.")


def test_a_model_that_is_not_there_is_told_before_anything_is_loaded(plug: Callable[[str], None]) -> None:
    plug("(self.expert,)")
    with pytest.raises(SteerbenchError, match=r"there is no model folder at '/nowhere/lm'"):
        plan('guided:expert="/nowhere/lm"')
