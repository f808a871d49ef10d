"""What a run would come to, before it is begun: records, responses, time and room on the disk."""

import time
from contextlib import closing
from dataclasses import dataclass

from steerbench.bench.method import MethodsLike
from steerbench.bench.protocol import Protocol
from steerbench.bench.run import recorded
from steerbench.bench.setup import Bench, Options, load_bench
from steerbench.bench.units import units
from steerbench.engine.effect import effect
from steerbench.engine.generate import generate
from steerbench.records.store import Store
from steerbench.steering.steering import Steering

_TRIAL = 16
"""Prompts that are answered and scored to tell the pace."""
_ROW_BYTES, _RECORD_BYTES = 60, 25_000
"""Of a row beside its texts, and of a record beside its rows: about, and rather more than it takes."""


@dataclass(frozen=True)
class Forecast:
    """What is ahead for one task."""

    task: str
    units: int
    """Records that the run ends with: methods times seeds."""
    found: int
    """How many of them are there already."""
    responses: int
    """To test prompts and, under tuning, to validation prompts."""
    seconds: float
    """Of generating and scoring them at the pace of the unsteered model, fits not counted."""
    bytes: int
    """On the disk."""


def forecast(
    protocol: Protocol, methods: MethodsLike, options: Options = Options(), *, swept: bool = False
) -> Forecast:
    """Load what a run would load, answer some test prompts, and tell from them what the run would come to.

    Nothing is fitted and nothing written. Raises SteerbenchError where the run would before its first method.
    """
    planned = units([protocol], methods, swept=swept)
    bench = load_bench(protocol, options, methods=[unit.built for unit in planned])
    store = Store(options.out)
    found = sum(recorded(bench, unit, store) is not None for unit in planned)
    ahead, p = len(planned) - found, bench.protocol
    tests = len(bench.test) * p.n_samples
    responses = ahead * (tests + p.tuning_budget * len(bench.validation))
    with closing(bench):
        seconds, text = _pace(bench)
    return Forecast(
        task=bench.labels["task"],
        units=len(planned),
        found=found,
        responses=responses,
        seconds=responses * seconds,
        bytes=round(ahead * (_RECORD_BYTES + tests * (_ROW_BYTES + text))),
    )


def _pace(bench: Bench) -> tuple[float, float]:
    """Return the seconds and the bytes of text that one response takes, unsteered and scored."""
    some = bench.test[:_TRIAL]
    prompts = [e.prompt for e in some]
    start = time.perf_counter()
    decoding, size = bench.protocol.decoding, bench.batch_size
    responses = generate(bench.lm, prompts, decoding=decoding, batch_size=size, engine=bench.engine)
    effect(bench.lm, prompts, responses, Steering(), decoding=decoding, reward=bench.reward)
    texts = [r.text for r in responses]
    for reward in bench.rewards.values():
        reward.score(prompts, texts)
    seconds = time.perf_counter() - start
    return seconds / len(some), sum(len(t.encode()) for t in texts) / len(some)
