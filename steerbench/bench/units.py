"""What is to be measured, as units that are independent of one another: a protocol, a method, a seed.

A unit is made of plain values, so that any engine can carry it to another process or machine.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steerbench.bench.method import Method, MethodsLike, methods_of, sweep
from steerbench.bench.protocol import Protocol
from steerbench.decoding import Decoding
from steerbench.errors import SteerbenchError
from steerbench.plugins.spec import UNSTEERED, build, build_task, parse
from steerbench.records.identity import fingerprint


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One measurement. Plugin files that it names must be registered where it is carried out."""

    protocol: Protocol
    method: str
    """Its specification, in canonical form."""
    seed: int

    @property
    def built(self) -> Method:
        """The method. Raises SteerbenchError if it is not known here."""
        (spec,) = parse(self.method)
        return Method(spec, build(spec))

    def to_json(self) -> str:
        """Return the unit as JSON, which `from_json` reads back."""
        values: dict[str, Any] = asdict(self)
        data = values["protocol"]["data"]
        values["protocol"]["data"] = None if data is None else str(data)
        return json.dumps(values, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Unit":
        """Return the unit that `to_json` wrote."""
        values = json.loads(text)
        given = values["protocol"]
        data, decoding = given["data"] and Path(given["data"]), Decoding(**given["decoding"])
        protocol = Protocol(**{**given, "data": data, "decoding": decoding, "seeds": tuple(given["seeds"])})
        return cls(protocol=protocol, method=values["method"], seed=values["seed"])


def units(protocols: Sequence[Protocol], methods: MethodsLike, *, swept: bool = False) -> list[Unit]:
    """Return what is to be measured, protocol by protocol and seed by seed, for each the unsteered model first.

    `swept` has each method at every strength of its search space. Raises SteerbenchError for a mistake in the names of
    methods and tasks or in their settings, before anything heavy is loaded.
    """
    found = []
    for protocol in protocols:
        build_task(protocol.task_part)
        chosen = plan(methods, tuned=protocol.budget > 0, swept=swept)
        found += [
            Unit(protocol=protocol, method=str(method.spec), seed=seed) for seed in protocol.seeds for method in chosen
        ]
    return found


def plan(methods: MethodsLike, *, tuned: bool = False, swept: bool = False) -> list[Method]:
    """Read and build the methods, the unsteered model first. Raises SteerbenchError before anything heavy is loaded."""
    if tuned and swept:
        raise SteerbenchError("--sweep measures every strength, so nothing is left to set; drop --tune and --match-kl.")
    found = [*methods_of(UNSTEERED), *methods_of(methods)]
    found = [one for method in found for one in sweep(method)] if swept else found
    chosen: dict[str, Method] = {}
    for method in found:  # without tuning, `caa` and `caa:strength=1` are one and the same
        chosen.setdefault(fingerprint(method.parts(tuned=tuned)), method)
    return list(chosen.values())
