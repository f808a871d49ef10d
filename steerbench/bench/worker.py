"""A process that measures unit after unit of one protocol, with the models loaded once."""

import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from steerbench.bench.carrier import Failure, Prepared
from steerbench.bench.protocol import Protocol
from steerbench.bench.run import identity_of, measure
from steerbench.bench.setup import Bench, Options, load_bench
from steerbench.bench.units import Unit
from steerbench.models.failure import reason
from steerbench.plugins.registry import add_plugin
from steerbench.plugins.spec import UNSTEERED
from steerbench.records.record import Record


class Worker:
    """Measures units; it reads and writes no records.

    Made of plain values, and everything heavy is loaded when it is first needed: one that is made again after its
    process was killed goes on where it is asked to.
    """

    def __init__(
        self, protocol: Protocol, options: Options, planned: Sequence[Unit], plugins: Sequence[Path], folder: Path
    ) -> None:
        self._protocol, self._options = protocol, options
        self._planned, self._plugins = planned, plugins
        if folder.is_dir():  # that of the command, to which relative paths belong
            os.chdir(folder)

    @cached_property
    def _bench(self) -> Bench:
        for path in self._plugins:
            add_plugin(path)
        return load_bench(self._protocol, self._options, methods=[unit.built for unit in self._planned])

    def prepare(self) -> Prepared:
        """Load the models, and return the identities of all units' records. Raises SteerbenchError like `run`."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bench = self._bench
        told = dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, UserWarning))
        return Prepared([identity_of(bench, unit) for unit in self._planned], list(told))

    def measure(self, unit: Unit) -> Record | Failure:
        """Measure a unit. Raises what comes without a steering: every method would fail with it."""
        bench = self._bench
        try:
            return measure(bench, unit.built, unit.seed)
        except Exception as error:
            if unit.method == UNSTEERED:
                raise
            return Failure(unit.method, unit.seed, reason(error))
