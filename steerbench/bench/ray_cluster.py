"""Units carried by Ray: workers of a cluster, which may be this machine alone.

Ray places the workers, starts one anew whose process or machine went, and hands the unit that it had to it again.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from socket import create_connection
from threading import current_thread, main_thread
from typing import Any, Self

from steerbench.bench.carrier import Failure, Prepared
from steerbench.bench.protocol import Protocol
from steerbench.bench.setup import Options
from steerbench.bench.units import Unit
from steerbench.bench.worker import Worker
from steerbench.errors import SteerbenchError
from steerbench.models.checkpoint import brief
from steerbench.plugins.registry import plugin_files
from steerbench.plugins.spec import UNSTEERED
from steerbench.progress import silent
from steerbench.records.record import Record

RETRIES = 5
"""How often a unit is done again whose worker went: what always needs more memory than there is, ends."""
_OBJECTS = 256 * 2**20
"""Bytes of shared memory for what processes of one machine hand over: records, one at a time."""

_PATIENCE = 10.0
"""Seconds in which a cluster must answer."""


class RayCluster:
    """A Ray cluster that carries units: `with RayCluster() as cluster: run(..., carrier=cluster)`.

    Without an address it is the one that the environment names (`RAY_ADDRESS`, as in a job), or else this machine,
    whose processes end with the context. A connection that is there is used and stays. Raises SteerbenchError without
    the extra `ray`, and where no cluster answers.
    """

    def __init__(self, address: str | None = None, *, n_workers: int | None = None) -> None:
        """`n_workers` are at most as many as have room, which is the default."""
        self._address, self._most = address, n_workers
        self._connected = False

    def __enter__(self) -> Self:
        if not _ray().is_initialized():
            self._connect()
        return self

    def _connect(self) -> None:
        """Connect, or start processes here, quietly and without a word to others. Signals stay the command's."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        here = self._address is None and not os.environ.get("RAY_ADDRESS")
        own = {"include_dashboard": False, "object_store_memory": _OBJECTS} if here else {}
        try:
            _knock(self._address or os.environ.get("RAY_ADDRESS") or "")
            with _signals_kept():
                _ray().init(self._address, log_to_driver=False, logging_level="error", **own)
        except Exception as error:  # Ray raises any of them
            where = self._address or os.environ.get("RAY_ADDRESS") or "this machine"
            raise SteerbenchError(
                f"no Ray cluster at {where} ({brief(error)}); check the address, and whether one is running."
            ) from error
        self._connected = True

    def __exit__(self, *error: object) -> None:
        if self._connected:
            _ray().shutdown()
            self._connected = False

    @contextmanager
    def crew(self, protocol: Protocol, options: Options, planned: Sequence[Unit]) -> Iterator["RayCrew"]:
        """Return workers for some units of a protocol. Raises SteerbenchError where not one has room."""
        crew = RayCrew(protocol, options, planned, self._most)
        try:
            yield crew
        finally:
            crew.close()


class RayCrew:
    """Actors, each a `Worker` with one CPU, or as many as it has threads, and a GPU where the cluster has some."""

    def __init__(self, protocol: Protocol, options: Options, planned: Sequence[Unit], most: int | None) -> None:
        self._planned, self._actors = planned, list[Any]()
        threads = options.threads or 1
        self._needs = {"num_cpus": threads, "num_gpus": _gpus(options)}
        self._room = min(_room(self._needs), most or sys.maxsize)
        given = replace(options, threads=threads, progress=silent, written=None)
        self._made_of = (protocol, given, list(planned), plugin_files(), Path.cwd())

    @property
    def label(self) -> str:
        """How many workers there are."""
        n = len(self._actors)
        return f"{n} worker{'s' if n > 1 else ''}"

    def prepare(self) -> Prepared:
        """Start the workers, which load their models side by side, and return what the first one says."""
        made = _ray().remote(Worker).options(**self._needs, max_restarts=-1, max_task_retries=RETRIES)
        self._actors += [made.remote(*self._made_of) for _ in range(min(self._room, len(self._planned)))]
        first, *_ = [actor.prepare.remote() for actor in self._actors]
        prepared: Prepared = self._get(first)
        return prepared

    def measure(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Record | Failure]]:
        """Yield units as they are done; whoever is free takes the next one."""
        waiting, free, busy = deque(_in_turn(units)), deque(self._actors), dict[Any, tuple[Any, Unit]]()

        def hand_out() -> None:
            while waiting and free:
                actor, unit = free.popleft(), waiting.popleft()
                busy[actor.measure.remote(unit)] = actor, unit

        hand_out()
        while busy:
            (ready, *_), _ = _ray().wait(list(busy))
            actor, unit = busy.pop(ready)
            free.append(actor)
            hand_out()  # before this record is written
            yield unit, self._result(ready, unit)

    def close(self) -> None:
        """End the workers, whatever they are at."""
        for actor in self._actors:
            _ray().kill(actor)
        self._actors.clear()

    def _result(self, ready: Any, unit: Unit) -> Record | Failure:
        """Return what came of a unit. Raises SteerbenchError if it was the unsteered model's that was lost."""
        try:
            result: Record | Failure = self._get(ready)
        except _Lost as error:
            if unit.method == UNSTEERED:
                raise
            result = Failure(unit.method, unit.seed, str(error))
        return result

    def _get(self, reference: Any) -> Any:
        """Return what a worker gave. Raises what it raised, and SteerbenchError if it went each time it was asked."""
        errors = _ray().exceptions
        try:
            return _ray().get(reference)
        except errors.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except (errors.RayActorError, errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            raise _Lost(
                f"its worker went {RETRIES + 1} times, as where memory runs out ({brief(error)}); lower --batch-size, "
                f"or give each worker more --threads, so that fewer run."
            ) from error


def _in_turn(units: Sequence[Unit]) -> list[Unit]:
    """Return units as they are handed out: the first shows whether anything works, the shortest are for the end."""
    return [*units[:1], *sorted(units[1:], key=lambda unit: unit.method == UNSTEERED)]


class _Lost(SteerbenchError):
    """A unit whose workers all went."""


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Give signals back to whom they belong: Ray makes SIGTERM its own."""
    if current_thread() is not main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _ray() -> Any:
    """Return the package. Raises SteerbenchError where it is not installed."""
    if not find_spec("ray"):
        raise SteerbenchError("--ray needs the package ray, which is not installed: pip install 'steerbench[ray]'.")
    import ray
    import ray.exceptions

    return ray


def _gpus(options: Options) -> int:
    """Return how many GPUs a worker takes: one where the cluster has some, and no other device is asked for.

    A model that is spread takes all those of a machine.
    """
    most = max(int(machine.get("GPU", 0)) for machine in _machines())
    if not (options.device == "auto" or options.device.startswith("cuda")):
        return 0
    return most if options.device_map else min(1, most)


def _machines() -> list[dict[str, float]]:
    return [node["Resources"] for node in _ray().nodes() if node["Alive"]]


def _room(needs: dict[str, int]) -> int:
    """Return how many workers the machines of the cluster have room for. Raises SteerbenchError if there is none."""
    machines = _machines()
    kinds = {"CPU": needs["num_cpus"], "GPU": needs["num_gpus"]}
    room = sum(min(int(has.get(kind, 0) // n) for kind, n in kinds.items() if n) for has in machines)
    if not room:
        has = ", ".join(f"{m.get('CPU', 0):g} CPUs and {m.get('GPU', 0):g} GPUs" for m in machines)
        raise SteerbenchError(
            f"no machine of the cluster has room for a worker of {kinds['CPU']} CPUs and {kinds['GPU']} GPUs; they "
            f"have {has}. Lower --threads."
        )
    return room
