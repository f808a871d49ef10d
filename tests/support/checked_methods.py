"""What the tests of the contract check: methods by name or from a file, each on a family of tiny models."""

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

from runnable import GIVEN

import steerbench
from steerbench.bench.method import Method
from steerbench.contract import tiny
from steerbench.contract.check import check_family
from steerbench.contract.invariants import INVARIANTS
from steerbench.plugins import registry
from steerbench.plugins.spec import build, parse

QUICK = {
    "re_control": "re_control:epochs=3",
    "alignez": "alignez:n_queries=4",
    "blockwise_decoding": "blockwise_decoding:epochs=3:block=2",
    "cards": "cards:entropy=3.4:tries=6",
    "transfer_q": "transfer_q:candidates=3:lookahead=2",
    "deal": "deal:block=2:lookahead=1",
    "ta2": "ta2:n_queries=4",
    "bipo": "bipo:epochs=1",
    "lofit": "lofit:epochs=1",
    "reft": "reft:epochs=1",
    "pref_ctrl": "pref_ctrl:epochs=2:n_steps=5",
    "prime_guard": "prime_guard:n_prompts=4",
    "classifier_free": "classifier_free:text=kindly",
    **GIVEN,
}
"""No invariant depends on how well a value function is trained, nor on what is in a file."""
METHODS = [QUICK.get(name, name) for name in steerbench.names("methods")]


def add(folder: Path, name: str, source: str) -> Method:
    """Register a method from a file."""
    path = folder / f"{name}.py"
    path.write_text(source)
    registry.add_plugin(path)
    return named(name)


def named(text: str) -> Method:
    (spec,) = parse(text)
    return Method(spec, build(spec))


def problems(method: Method, family: str = "llama") -> dict[str, str]:
    """Return the invariants that a method breaks, each with the sentence that says how."""
    results = zip(INVARIANTS, check_family(method, family), strict=True)
    return {invariant.__name__: result.problem for invariant, result in results if result.problem}


def in_turn(names: Iterable[str]) -> list[tuple[str, str]]:
    """Give each name a family, one after the other."""
    return list(zip(names, cycle(tiny.FAMILIES), strict=False))
