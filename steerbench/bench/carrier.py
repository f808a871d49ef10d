"""Units measured elsewhere: what a run asks of those who carry them to other processes or machines.

Workers measure and the run writes, so that a folder of records has one writer, and nobody else needs to reach it.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from steerbench.bench import protocol, setup
from steerbench.bench.units import Unit
from steerbench.records.record import Record


class Failure(NamedTuple):
    """A method that could not be measured, and why: one sentence, or the traceback of a bug."""

    method: str
    seed: int
    message: str


class Prepared(NamedTuple):
    """What a worker tells when it has loaded everything."""

    identities: list[str]
    """Of the units' records, in the order of the units."""
    warnings: list[str]
    """What a user must know about the models."""


class Crew(Protocol):
    """Workers that measure the units of one protocol, each with the models loaded once."""

    def prepare(self) -> Prepared:
        """Load the models in one of them. Raises SteerbenchError if nothing can be measured."""

    @property
    def label(self) -> str:
        """How many there are, as `2 workers`."""

    def measure(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Record | Failure]]:
        """Yield units as they are done. Raises what the unsteered model fails with: then every method would."""


class Carrier(Protocol):
    """What has workers: a cluster."""

    def crew(
        self, protocol: protocol.Protocol, options: setup.Options, planned: Sequence[Unit]
    ) -> AbstractContextManager[Crew]:
        """Return the workers for some units, which end with the context."""
