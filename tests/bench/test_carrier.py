"""Units that others measure: what comes back is written here, and is what a serial run would have written."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from carried_records import contents

from steerbench import Decoding, Options, Protocol, Store, run
from steerbench.bench.carrier import Failure, Prepared
from steerbench.bench.setup import Bench, load_bench
from steerbench.bench.units import Unit
from steerbench.bench.worker import Worker
from steerbench.contract import tiny
from steerbench.errors import SteerbenchError
from steerbench.plugins import registry
from steerbench.records.record import Record

METHODS = "static_prompt,re_control"
BROKEN = """
from dataclasses import dataclass
from steerbench import Steerer

@dataclass(frozen=True, kw_only=True)
class Broken(Steerer):
    '''Fails.'''
    def fit(self, context):
        raise RuntimeError("not today")
"""


@dataclass
class Backwards:
    """Two workers in this process that take turns, the last unit first."""

    plugins: list[Path] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @contextmanager
    def crew(self, protocol: Protocol, options: Options, planned: Sequence[Unit]) -> Iterator["Backwards"]:
        given = replace(options, out=Path("nowhere"))
        self.workers = [Worker(protocol, given, planned, self.plugins, Path.cwd()) for _ in range(2)]
        yield self

    @property
    def label(self) -> str:
        return "2 workers"

    def prepare(self) -> Prepared:
        return self.workers[0].prepare()

    def measure(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Record | Failure]]:
        for i, unit in enumerate(reversed(units)):
            self.asked.append(f"{unit.method} {unit.seed}")
            yield unit, self.workers[i % 2].measure(unit)


@pytest.fixture
def small(protocol: Protocol) -> Protocol:
    return replace(protocol, n_examples=3, n_train=4, decoding=Decoding(max_new_tokens=3), seeds=(0, 1))


def test_records_do_not_depend_on_who_measures_nor_in_which_order(small: Protocol, tmp_path: Path) -> None:
    whole = run(small, METHODS, Options(out=tmp_path / "serial"))
    carried = run(small, METHODS, Options(out=tmp_path / "carried"), carrier=Backwards())
    assert len(carried.records) == 6
    assert [r.identity for r in carried.records] == [r.identity for r in whole.records]
    assert contents(tmp_path / "carried") == contents(tmp_path / "serial")
    assert not Path("nowhere").exists()


def test_another_engine_is_not_carried(small: Protocol, tmp_path: Path) -> None:
    with pytest.raises(SteerbenchError, match="generates with transformers, and not with vllm"):
        run(replace(small, engine="vllm"), METHODS, Options(out=tmp_path / "runs"), carrier=Backwards())
    assert not (tmp_path / "runs").exists()


def test_only_what_is_missing_is_measured(small: Protocol, tmp_path: Path) -> None:
    run(small, "unsteered", Options(out=tmp_path))
    carrier = Backwards()
    outcome = run(small, "static_prompt", Options(out=tmp_path), carrier=carrier)
    assert carrier.asked == ["static_prompt 1", "static_prompt 0"]
    assert outcome.found == 2
    assert [r.method for r in outcome.records] == ["unsteered", "static_prompt"] * 2


def test_an_interrupted_run_goes_on(small: Protocol, tmp_path: Path) -> None:
    one = replace(small, seeds=(0,))

    class Interrupted(Backwards):
        def measure(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Record | Failure]]:
            found = super().measure(units)
            yield next(found)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(one, "static_prompt", Options(out=tmp_path / "ended"), carrier=Interrupted())
    assert len(Store(tmp_path / "ended").records()) == 1
    run(one, "static_prompt", Options(out=tmp_path / "ended"), carrier=Backwards())
    run(one, "static_prompt", Options(out=tmp_path / "whole"))
    assert contents(tmp_path / "ended") == contents(tmp_path / "whole")


def test_a_method_that_fails_is_told_and_the_others_go_on(
    small: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_files", {})
    (tmp_path / "broken.py").write_text(BROKEN)
    registry.add_plugin(tmp_path / "broken.py")
    assert registry.plugin_files() == [tmp_path / "broken.py"]
    one = replace(small, seeds=(0,))
    outcome = run(one, "broken,static_prompt", Options(out=tmp_path / "runs"), carrier=Backwards())
    assert [r.method for r in outcome.records] == ["unsteered", "static_prompt"]
    (failure,) = outcome.failures
    assert (failure.method, failure.seed) == ("broken", 0)
    assert "not today" in failure.message


def test_what_the_unsteered_model_fails_with_ends_the_run(
    small: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no model")

    monkeypatch.setattr("steerbench.bench.run.generate_samples", fail)
    with pytest.raises(RuntimeError, match="no model"):
        run(replace(small, seeds=(0,)), "static_prompt", Options(out=tmp_path), carrier=Backwards())


def test_a_worker_tells_what_its_models_need_said(
    small: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loading(*args: Any, **kwargs: Any) -> Bench:
        warnings.warn("one text at a time", stacklevel=1)
        return load_bench(*args, **kwargs)

    monkeypatch.setattr("steerbench.bench.worker.load_bench", loading)
    with pytest.warns(UserWarning, match="one text at a time"):
        run(replace(small, seeds=(0,)), "unsteered", Options(out=tmp_path), carrier=Backwards())


def test_a_loaded_model_is_not_carried(small: Protocol, tmp_path: Path) -> None:
    with pytest.raises(SteerbenchError, match="leave out lm or the carrier"):
        run(small, "caa", Options(out=tmp_path), lm=tiny.language_model("llama"), carrier=Backwards())
