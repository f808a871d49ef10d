"""What is asked of Ray, with something in its place that runs here; `test_ray_cluster.py` has the real one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steerbench import Options, Protocol
from steerbench.bench import ray_cluster
from steerbench.bench.carrier import Failure, Prepared
from steerbench.bench.ray_cluster import RETRIES, RayCluster
from steerbench.bench.units import Unit, units
from steerbench.errors import SteerbenchError


class TaskError(Exception):
    """What Ray raises for an error of a worker's."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Gone(Exception):
    """What Ray raises when a worker went too often."""


Answer = Callable[[Unit], Any]


@dataclass
class Nearby:
    """The functions of Ray that are used, on machines with CPUs and GPUs; what is handed out last is done first."""

    answer: Answer
    machines: list[dict[str, float]] = field(default_factory=lambda: [{"CPU": 2.0}])
    asked: dict[str, Any] = field(default_factory=dict)
    made: list[tuple[Any, ...]] = field(default_factory=list)
    prepared: int = 0
    killed: int = 0
    exceptions = SimpleNamespace(
        RayTaskError=TaskError, RayActorError=Gone, WorkerCrashedError=Gone, OutOfMemoryError=Gone
    )

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": has} for has in self.machines] + [{"Alive": False, "Resources": {}}]

    def is_initialized(self) -> bool:
        return True

    def remote(self, cls: type) -> Any:
        return SimpleNamespace(options=self._options)

    def _options(self, **asked: Any) -> Any:
        self.asked = asked
        return SimpleNamespace(remote=self._actor)

    def _actor(self, *made_of: Any) -> Any:
        self.made.append(made_of)
        measure = SimpleNamespace(remote=lambda unit: Reference(lambda: self.answer(unit)))
        return SimpleNamespace(measure=measure, prepare=SimpleNamespace(remote=self._prepare))

    def _prepare(self) -> "Reference":
        self.prepared += 1
        return Reference(lambda: Prepared(["a"], []))

    def get(self, reference: "Reference") -> Any:
        return reference.work()

    def wait(self, references: list[Any]) -> tuple[list[Any], list[Any]]:
        return references[-1:], references[:-1]

    def kill(self, actor: Any) -> None:
        self.killed += 1


class Reference:
    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work


ONE_THREAD = Options(threads=1)
PLANNED = units([Protocol(seeds=(0, 1))], "caa")


def done(ray: Nearby, monkeypatch: pytest.MonkeyPatch, options: Options = ONE_THREAD) -> list[tuple[Unit, Any]]:
    monkeypatch.setattr(ray_cluster, "_ray", lambda: ray)
    with RayCluster() as cluster, cluster.crew(Protocol(), options, PLANNED) as crew:
        assert crew.prepare() == Prepared(["a"], [])
        found = list(crew.measure(PLANNED))
    assert ray.killed == ray.prepared == len(ray.made)
    return found


def named(unit: Unit) -> str:
    return f"{unit.method} {unit.seed}"


def test_each_unit_is_done_once_by_whoever_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Nearby(named)
    found = done(ray, monkeypatch)
    assert [result for _, result in found] == ["caa 0", "caa 1", "unsteered 1", "unsteered 0"]
    assert [named(unit) for unit, _ in found] == [result for _, result in found]
    assert len(ray.made) == 2
    assert ray.asked == {"num_cpus": 1, "num_gpus": 0, "max_restarts": -1, "max_task_retries": RETRIES}


@pytest.mark.parametrize(
    ("machines", "options", "needs", "workers"),
    [
        ([{"CPU": 8.0}], Options(threads=4), (4, 0), 2),
        ([{"CPU": 3.0}, {"CPU": 3.0}], Options(threads=2), (2, 0), 2),
        ([{"CPU": 16.0, "GPU": 3.0}, {"CPU": 8.0}], Options(), (1, 1), 3),
        ([{"CPU": 16.0, "GPU": 3.0}], Options(device="cpu"), (1, 0), 4),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}], Options(device_map="auto"), (1, 4), 2),
    ],
)
def test_workers_are_as_many_as_have_room(
    machines: list[dict[str, float]],
    options: Options,
    needs: tuple[int, int],
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = Nearby(named, machines)
    assert len(done(ray, monkeypatch, options)) == len(PLANNED)
    assert (ray.asked["num_cpus"], ray.asked["num_gpus"], len(ray.made)) == (*needs, workers)
    (_, given, planned, _, folder), *_ = ray.made
    assert (given.threads, planned, folder) == (needs[0], PLANNED, Path.cwd())


def test_units_of_the_unsteered_model_are_handed_out_last_but_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the shortest: nobody waits long for the last."""
    asked: list[str] = []

    class Ordered(Nearby):
        def _actor(self, *made_of: Any) -> Any:
            actor = super()._actor(*made_of)
            measured = actor.measure.remote

            def measure(unit: Unit) -> Reference:
                asked.append(named(unit))
                answer: Reference = measured(unit)
                return answer

            actor.measure = SimpleNamespace(remote=measure)
            return actor

    done(Ordered(named), monkeypatch)
    assert asked == ["unsteered 0", "caa 0", "caa 1", "unsteered 1"]


def test_a_unit_whose_workers_went_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(unit: Unit) -> str:
        if named(unit) == "caa 0":
            raise Gone("out of memory")
        return named(unit)

    found = dict(done(Nearby(answer), monkeypatch))
    (failure,) = (one for one in found.values() if isinstance(one, Failure))
    assert (failure.method, failure.seed) == ("caa", 0)
    assert failure.message.startswith("its worker went 6 times, as where memory runs out (out of memory)")
    assert len(found) == 4


def test_the_unsteered_model_whose_workers_went_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(unit: Unit) -> str:
        raise Gone("out of memory")

    with pytest.raises(SteerbenchError, match="its worker went 6 times"):
        done(Nearby(answer, [{"CPU": 1.0}]), monkeypatch)


def test_what_a_worker_raises_is_raised_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(unit: Unit) -> str:
        raise TaskError(SteerbenchError("there is no model folder"))

    with pytest.raises(SteerbenchError, match=r"^there is no model folder$"):
        done(Nearby(answer), monkeypatch)


def test_no_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "room for a worker of 4 CPUs and 0 GPUs; they have 2 CPUs and 0 GPUs"
    with pytest.raises(SteerbenchError, match=told):
        done(Nearby(named), monkeypatch, Options(threads=4))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_no_cluster_at_an_address_is_told_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_ray", lambda: SimpleNamespace(is_initialized=lambda: False))
    with pytest.raises(SteerbenchError, match=rf"no Ray cluster at {address} \(.*refused\); check the address"):
        RayCluster(address).__enter__()
