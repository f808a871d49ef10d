"""The main path: units -> [tune on validation] -> fit -> generate on test -> score -> write."""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from steerbench import testbed
from steerbench.bench.carrier import Carrier, Crew
from steerbench.bench.carrier import Failure as Failure
from steerbench.bench.choices import add_choices, capability
from steerbench.bench.engines import check_at_home
from steerbench.bench.method import Method, MethodsLike
from steerbench.bench.protocol import Protocol
from steerbench.bench.scoring import means, score
from steerbench.bench.setup import Bench, Options, load_bench
from steerbench.bench.tuning import Tuned, match, tune
from steerbench.bench.units import Unit, units
from steerbench.bench.validation import Validation
from steerbench.engine.effect import Effect, effect
from steerbench.engine.generate import generate_samples
from steerbench.engine.guidance import identified
from steerbench.engine.timing import latency
from steerbench.errors import SteerbenchError
from steerbench.learn.context import FitContext
from steerbench.models.failure import reason
from steerbench.models.language_model import LanguageModel
from steerbench.models.machine import environment, threads_label
from steerbench.models.response import Response
from steerbench.plugins.spec import UNSTEERED
from steerbench.records.record import Record, identity
from steerbench.records.store import Store
from steerbench.steering.steering import Steering
from steerbench.version import __version__

SHARED = "shared"
"""The folder in that of the records where workers find what methods share."""


@dataclass
class Outcome:
    """The records of a run, measured now or found, in the order of the methods, and what failed."""

    records: list[Record] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    found: int = 0
    """How many of the records were there before."""


def run(
    protocol: Protocol,
    methods: MethodsLike,
    options: Options = Options(),
    *,
    lm: LanguageModel | None = None,
    swept: bool = False,
    carrier: Carrier | None = None,
) -> Outcome:
    """Measure methods under a protocol and write their records; what has a record is not measured again.

    `methods` is a list such as `caa:strength=2,caa+static_prompt`, or made in Python: a Steerer, its class, or a list
    of them. The unsteered model is always measured too. `lm` is a loaded model, in place of one that the protocol
    names; its revision, or a hash of its weights, stands in the records. A method that fails is reported in the
    outcome, and the others go on. `swept` measures each at every strength of its search space. With a `carrier` others
    measure, such as the processes of a `RayCluster`, and what they make is written here. Raises SteerbenchError if
    nothing can be measured, or nothing can be written.
    """
    if carrier is not None and lm is not None:
        raise SteerbenchError("a loaded model stays in its process: leave out lm or the carrier.")
    if carrier is not None:
        check_at_home(protocol.engine)
    protocol = protocol if lm is None else _of_model(protocol, lm)
    planned = units([protocol], methods, swept=swept)
    store = Store(options.out)
    store.prepare()
    if carrier is not None:
        options = replace(options, shared=(options.shared or options.out / SHARED).absolute())
        with carrier.crew(protocol, options, planned) as crew:
            return _carried(crew, planned, store, options)
    bench = load_bench(protocol, options, lm, [unit.built for unit in planned])
    outcome = Outcome()
    records = options.progress(f"{protocol.task}: records, {threads_label()}", len(planned))
    with closing(bench), records as advance:
        for unit in planned:
            try:
                record, found = find_or_measure(bench, unit, store)
            except Exception as error:
                if unit.method == UNSTEERED:  # what fails without a steering fails with every one
                    raise
                outcome.failures.append(Failure(unit.method, unit.seed, reason(error)))
            else:
                if not found:  # outside of the try: a full disk ends the run
                    _write(store, record, options)
                outcome.found += found
                outcome.records.append(record)
            advance(1)
    return outcome


def _write(store: Store, record: Record, options: Options) -> None:
    store.write(record)
    if options.written is not None:
        options.written(record)


def _carried(crew: Crew, planned: Sequence[Unit], store: Store, options: Options) -> Outcome:
    """Let workers measure what has no record, and write each as it comes; the outcome is in the order of the units."""
    task, progress = planned[0].protocol.task, options.progress
    with progress(f"{task}: load", 1) as advance:
        prepared = crew.prepare()
        advance(1)
    for message in prepared.warnings:
        warnings.warn(message, stacklevel=3)
    known = {unit: store.find(name) for unit, name in zip(planned, prepared.identities, strict=True)}
    done: dict[Unit, Record | Failure] = {unit: record for unit, record in known.items() if record}
    found = len(done)
    with progress(f"{task}: records, {crew.label}", len(planned)) as advance:
        advance(found)
        for unit, result in crew.measure([unit for unit in planned if unit not in done]):
            if isinstance(result, Record):
                _write(store, result, options)
            done[unit] = result
            advance(1)
    results = [done[unit] for unit in planned]
    records = [one for one in results if isinstance(one, Record)]
    return Outcome(records, [one for one in results if isinstance(one, Failure)], found)


def _of_model(protocol: Protocol, lm: LanguageModel) -> Protocol:
    """Return the protocol of a loaded model. Raises SteerbenchError if it says something else."""
    model, dtype = testbed.part_path(lm.name), str(lm.dtype).removeprefix("torch.")
    if protocol.model not in (testbed.NAME, lm.name, model):
        raise SteerbenchError(
            f"the protocol's model is {protocol.model!r} and lm is {lm.name!r}; leave the former out."
        )
    if protocol.dtype not in ("auto", dtype):
        raise SteerbenchError(f"the protocol's dtype is {protocol.dtype} and lm has {dtype}; leave the former out.")
    if protocol.thinking != lm.format.thinking and lm.format.thought:
        raise SteerbenchError(
            f"the protocol's thinking is {protocol.thinking} and that of lm {lm.format.thinking}; "
            f"load it with LanguageModel.load(..., thinking={protocol.thinking!r})."
        )
    return replace(protocol, model=model)


def run_unit(unit: Unit, options: Options = Options()) -> Record:
    """Find or measure one unit from its plain values alone, in whatever process, and return its record, written.

    It needs no other unit's record: what compares with the unsteered model is derived when records are read.
    """
    store = Store(options.out)
    store.prepare()
    with closing(load_bench(unit.protocol, options, methods=[unit.built])) as bench:
        record, found = find_or_measure(bench, unit, store)
    if not found:
        store.write(record)
    return record


def find_or_measure(bench: Bench, unit: Unit, store: Store) -> tuple[Record, bool]:
    """Return the record of a unit, and whether it was there before."""
    found = recorded(bench, unit, store)
    return (found, True) if found else (measure(bench, unit.built, unit.seed), False)


def recorded(bench: Bench, unit: Unit, store: Store) -> Record | None:
    """Return the record of a unit, if it was measured before."""
    return store.find(identity_of(bench, unit))


def identity_of(bench: Bench, unit: Unit) -> str:
    """Return the identity of a unit's record, which is known before it is measured."""
    return identity(bench.key, _parts(bench, unit.built), unit.seed, __version__)


def measure(bench: Bench, method: Method, seed: int) -> Record:
    """Tune a method if the protocol says so, fit it, generate on the test prompts, score, and time it."""
    seconds: dict[str, float] = {}
    context = bench.context(seed)
    with _timed(seconds, "tune"):
        tuned = _tuned(bench, method, context)
    with _timed(seconds, "fit"):
        steering = tuned.method.fit(context)
    # a trial may have learned what the last fit only looks up
    seconds["fit"] = max([seconds["fit"], *(round(one, 3) for one in context.fit_seconds)])
    with _timed(seconds, "generate"):
        responses = _responses(bench, steering, seed)
    truncated = bench.reward.truncated
    with _timed(seconds, "score"):
        found = _effect(bench, responses, steering)
        table = score(bench, responses, found)
        choices = add_choices(bench, table, steering)
        checked = capability(bench, steering)
    truncated = bench.reward.truncated - truncated
    prompt, progress = _median_prompt(bench), bench.options.progress
    costs = latency(bench.lm, prompt, steering, bench.reward, engine=bench.engine, progress=progress)
    seeded = context.seeded or bool(tuned.report)  # what tuning tries, and on which responses, are drawn
    report: dict[str, Any] = {"fit": context.report, "effect": found.report, "seeded": seeded}
    if choices:
        report["choices"] = choices
    if checked:
        report["capability"] = checked
    if steering.models:
        report["models"] = [identified(name) for name in steering.models]
    measured = {
        "latency": costs,
        "seconds": seconds,
        "truncated": truncated,
        "tuning": tuned.report,
        "report": report,
    }
    return _record(bench, method, seed, steering, table, measured)


def _record(
    bench: Bench, method: Method, seed: int, steering: Steering, table: pd.DataFrame, measured: Mapping[str, Any]
) -> Record:
    return Record(
        method=str(method.spec),
        parts=_parts(bench, method),
        protocol=bench.key,
        seed=seed,
        steerbench=__version__,
        labels=bench.labels,
        metrics=means(table),
        counts=dict(bench.counts),
        environment={**bench.batch_sizes, **environment(bench.lm.device), **bench.engine_facts},
        steering=steering.digest(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        examples=table,
        **measured,
    )


def _tuned(bench: Bench, method: Method, context: FitContext) -> Tuned:
    protocol = bench.protocol
    with_kl = protocol.match_kl is not None
    validation = Validation(bench.validation, bench.encoder, protocol.objective, with_kl, bench.kept)
    if protocol.match_kl is None:
        return tune(method, context, validation, protocol.tuning_budget, protocol.sampler)
    return match(method, context, validation, protocol.match_kl, protocol.tuning_budget)


def _responses(bench: Bench, steering: Steering, seed: int) -> list[Response]:
    """Return the responses to all test prompts, one sample after the other."""
    options, prompts = bench.options, [e.prompt for e in bench.test]
    return generate_samples(
        bench.lm,
        prompts,
        steering,
        bench.protocol.decoding,
        samples=bench.protocol.n_samples,
        seed=seed,
        reward=bench.reward,
        batch_size=bench.batch_size,
        engine=bench.engine,
        kept=bench.kept,
        progress=options.progress,
    )


def _effect(bench: Bench, responses: Sequence[Response], steering: Steering) -> Effect:
    options, prompts = bench.options, [e.prompt for e in bench.test_examples]
    return effect(
        bench.lm,
        prompts,
        responses,
        steering,
        decoding=bench.protocol.decoding,
        reward=bench.reward,
        batch_size=bench.batch_size,
        kept=bench.kept,
        progress=options.progress,
    )


def _parts(bench: Bench, method: Method) -> list[dict[str, Any]]:
    return method.parts(tuned=bench.protocol.tuning_budget > 0)


def _median_prompt(bench: Bench) -> Any:
    """Return the test prompt of median length, the same for all methods."""
    prompts: Sequence[Any] = sorted((e.prompt for e in bench.test), key=lambda p: len(bench.lm.tokens(p).prompt))
    return prompts[len(prompts) // 2]


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 3)
