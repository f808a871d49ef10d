"""What methods share is computed once, by whoever comes first, and is found whole or not at all."""

import json
import math
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_engine import PackedEngine
from torch import Tensor

from steerbench import Decoding, FitContext
from steerbench.contract import tiny
from steerbench.errors import SteerbenchError
from steerbench.learn import study_folder
from steerbench.learn.rollout import Rollout, read_rollouts, write_rollouts
from steerbench.learn.states import KeptStates, States
from steerbench.learn.study_folder import StudyFolder, write_file
from steerbench.models.sites import Site

KEY = {"seed": 3}


def read(folder: Path) -> str:
    return (folder / "text").read_text()


def writer(text: str, log: list[str] | None = None) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        if log is not None:
            log.append(text)
        write_file(folder, "text", text)
        return ["text"]

    return write


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    study, log = StudyFolder(tmp_path / "shared"), list[str]()
    assert study.once("word", KEY, read, writer("one", log)) == "one"
    assert StudyFolder(tmp_path / "shared").once("word", KEY, read, writer("two", log)) == "one"
    assert study.once("word", {"seed": 4}, read, writer("three", log)) == "three"
    assert log == ["one", "three"]
    assert not list(tmp_path.rglob("*.claim"))


@pytest.mark.parametrize("damage", ["index", "shorter", "missing"])
def test_what_is_not_whole_is_computed_again(tmp_path: Path, damage: str) -> None:
    study = StudyFolder(tmp_path)
    study.once("word", KEY, read, writer("one"))
    (folder,) = tmp_path.iterdir()
    if damage == "index":
        (folder / study_folder.INDEX).write_text("{")
    elif damage == "shorter":
        (folder / "text").write_text("o")
    else:
        (folder / "text").unlink()
    assert study.once("word", KEY, read, writer("two")) == "two"


def test_those_who_come_meanwhile_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_folder, "_LOOK", 0.01)
    begun, log, found = threading.Event(), list[str](), list[str]()

    def slowly(folder: Path) -> list[str]:
        begun.set()
        time.sleep(0.2)
        return writer("one", log)(folder)

    first = threading.Thread(target=lambda: StudyFolder(tmp_path).once("word", KEY, read, slowly))
    first.start()
    begun.wait()
    found.append(StudyFolder(tmp_path).once("word", KEY, read, writer("two", log)))
    first.join()
    assert (found, log) == (["one"], ["one"])


@pytest.mark.parametrize(
    "words",
    ["", "elsewhere 1 0", f"{platform.node()} {os.getpid()} 0"],
    ids=["nobody", "another machine", "this process"],
)
def test_who_falls_silent_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setattr(study_folder, "_LOOK", 0.01)
    monkeypatch.setattr(study_folder, "_PATIENCE", 0.05)
    left_behind(tmp_path, words)
    assert StudyFolder(tmp_path).once("word", KEY, read, writer("two")) == "two"


def test_who_was_killed_on_this_machine_is_not_waited_for_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_folder, "_LOOK", math.inf)
    ended = subprocess.Popen(["true"])
    ended.wait()
    left_behind(tmp_path, f"{platform.node()} {ended.pid} 0")
    assert StudyFolder(tmp_path).once("word", KEY, read, writer("two")) == "two"


def left_behind(path: Path, words: str) -> None:
    """Leave what a process leaves that was killed as it computed."""
    StudyFolder(path).once("word", KEY, read, writer("one"))
    (folder,) = path.iterdir()
    (folder / study_folder.INDEX).unlink()
    (path / f"{folder.name}.claim").write_text(words)


def test_who_is_slow_and_says_so_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"_LOOK": 0.01, "_BEAT": 0.02, "_PATIENCE": 0.2}.items():
        monkeypatch.setattr(study_folder, name, seconds)
    begun, log = threading.Event(), list[str]()

    def slowly(folder: Path) -> list[str]:
        begun.set()
        time.sleep(0.5)
        return writer("one", log)(folder)

    first = threading.Thread(target=lambda: StudyFolder(tmp_path).once("word", KEY, read, slowly))
    first.start()
    begun.wait()
    assert StudyFolder(tmp_path).once("word", KEY, read, writer("two", log)) == "one"
    first.join()
    assert log == ["one"]


def test_a_failure_lets_the_next_one_try(tmp_path: Path) -> None:
    def fail(folder: Path) -> list[str]:
        raise SteerbenchError("no reward")

    study = StudyFolder(tmp_path)
    with pytest.raises(SteerbenchError, match="no reward"):
        study.once("word", KEY, read, fail)
    assert study.once("word", KEY, read, writer("one")) == "one"


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SteerbenchError, match=r"cannot keep what methods share in .*another folder with --shared"):
        StudyFolder(tmp_path / "file").once("word", KEY, read, writer("one"))


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 5, generator=generator).bfloat16() for n in (3, 1, 4, 2, 6)]


def batches(states: States, generator: torch.Generator | None) -> list[tuple[list[int], list[list[float]]]]:
    return [(b.rows, b.states.tolist()) for b in states.batches(range(5), 2, generator)]


def test_kept_states_are_those_of_the_temporary_file(tmp_path: Path) -> None:
    names = KeptStates.keep(tmp_path, sequences(), shard_bytes=50)
    assert names == [f"00000{i}.safetensors" for i in range(4)]
    plain, kept = States.write(sequences(), shard_bytes=50), KeptStates.read(tmp_path)
    assert (len(kept), kept.lengths) == (5, plain.lengths)
    for seed in (None, 0, 1):
        first, second = (None if seed is None else torch.Generator().manual_seed(seed) for _ in range(2))
        assert batches(kept, first) == batches(plain, second)


def context_of(folder: Path | None, **given: Any) -> FitContext:
    return FitContext(
        lm=tiny.language_model("llama"),
        examples=tiny.examples()[:4],
        reward=tiny.VowelReward(),
        decoding=Decoding(max_new_tokens=4, temperature=1.0),
        _study=StudyFolder(folder) if folder else None,
        **given,
    )


def test_rollouts_and_states_are_found_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, first = context_of(None), context_of(tmp_path)
    rollouts = plain.rollouts()
    assert first.rollouts() == rollouts
    site, tokens = Site("resid_post", 1), [one.tokens for one in rollouts]
    lengths = first.states(site, tokens).lengths
    monkeypatch.setattr("steerbench.learn.context.generate", None)
    monkeypatch.setattr("steerbench.learn.context.response_states", lambda *a, **k: None)
    second = context_of(tmp_path)
    assert second.rollouts() == rollouts
    assert isinstance(second.rollouts()[0], Rollout)
    assert second.states(site, tokens).lengths == lengths
    monkeypatch.undo()
    (kept,), (own,) = (one.states(site, tokens).batches(range(4), 4) for one in (second, plain))
    assert torch.equal(kept.states, own.states)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"batch_size": 3},
        {"decoding": Decoding(max_new_tokens=3)},
        {"examples": tiny.examples()[:3]},
        {"engine": PackedEngine()},
    ],
)
def test_what_a_rollout_depends_on_is_in_its_key(tmp_path: Path, changed: dict[str, Any]) -> None:
    context = context_of(tmp_path)
    context.rollouts()
    replace(context, _shared={}, **changed).rollouts()
    assert len(list(tmp_path.glob("rollouts-*"))) == 2


def test_a_file_of_rollouts_is_plain_json(tmp_path: Path) -> None:
    rollouts = context_of(None).rollouts()
    (name,) = write_rollouts(tmp_path, rollouts)
    assert [row["reward"] for row in json.loads((tmp_path / name).read_text())] == [r.reward for r in rollouts]
    assert read_rollouts(tmp_path) == rollouts
