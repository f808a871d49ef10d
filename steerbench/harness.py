"""The main path: [tune on validation] -> fit -> generate on test -> score -> write, for every method and seed."""

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pandas as pd

import steerbench
from steerbench.batching import is_out_of_memory
from steerbench.bench import Bench, Options, load_bench
from steerbench.candidates import sweep
from steerbench.effect import Effect, effect
from steerbench.errors import SteerbenchError
from steerbench.generation import generate
from steerbench.latency.timing import latency
from steerbench.machine import OUT_OF_MEMORY, environment
from steerbench.matching import match
from steerbench.method import Method
from steerbench.protocol import Protocol, fingerprint
from steerbench.ranking import UNSTEERED
from steerbench.records import Record, Store, identity
from steerbench.response import Response
from steerbench.scoring import means, score
from steerbench.spec import build, parse
from steerbench.steerer import FitContext
from steerbench.steering import Steering
from steerbench.tuning import Tuned, tune
from steerbench.validation import Validation


class Failure(NamedTuple):
    """A method that could not be measured, and why: one sentence, or the traceback of a bug."""

    method: str
    seed: int
    message: str


@dataclass
class Outcome:
    """The records of a run, measured now or found, in the order of the methods, and what failed."""

    records: list[Record] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    found: int = 0
    """How many of the records were there before."""


def run(protocol: Protocol, methods: str, options: Options = Options(), *, swept: bool = False) -> Outcome:
    """Measure methods under a protocol and write their records; what has a record is not measured again.

    `methods` is a list such as `caa:strength=2,caa+static_prompt`; the unsteered model is always measured too. A method
    that fails is reported in the outcome, and the others go on. `swept` measures each at every strength of its search
    space. Raises SteerbenchError if nothing can be measured, or nothing can be written.
    """
    chosen = plan(methods, tuned=protocol.complete.tuning_budget > 0, swept=swept)
    store = Store(options.out)
    store.prepare()
    bench = load_bench(protocol, options)
    outcome = Outcome()
    with options.progress(f"{protocol.task}: methods", len(protocol.seeds) * len(chosen)) as advance:
        for seed in protocol.seeds:
            unsteered = None
            for method in chosen:
                record = _find_or_measure(bench, method, seed, store, unsteered, outcome)
                unsteered = record if unsteered is None else unsteered
                advance(1)
    return outcome


def plan(methods: str, *, tuned: bool = False, swept: bool = False) -> list[Method]:
    """Read and build the methods, the unsteered model first. Raises SteerbenchError before anything heavy is loaded."""
    if tuned and swept:
        raise SteerbenchError("--sweep measures every strength, so nothing is left to set; drop --tune and --match-kl.")
    found = [Method(spec, build(spec)) for spec in [*parse(UNSTEERED), *parse(methods)]]
    found = [one for method in found for one in sweep(method)] if swept else found
    chosen: dict[str, Method] = {}
    for method in found:  # without tuning, `caa` and `caa:strength=1` are one and the same
        chosen.setdefault(fingerprint(method.parts(tuned=tuned)), method)
    return list(chosen.values())


def fit_context(bench: Bench, seed: int) -> FitContext:
    """Return what a method may learn from under a protocol."""
    return FitContext(
        lm=bench.lm,
        examples=bench.train,
        test_queries=[e.prompt for e in bench.test] if bench.protocol.transductive else None,
        reward=bench.reward,
        seed=seed,
        decoding=bench.protocol.decoding,
        batch_size=bench.options.batch_size,
        progress=bench.options.progress,
        _shared=bench.shared,
    )


def _find_or_measure(
    bench: Bench, method: Method, seed: int, store: Store, unsteered: Record | None, outcome: Outcome
) -> Record | None:
    """Add the record of a method to the outcome, or why there is none; without the unsteered one, raise."""
    try:
        record = store.find(identity(bench.key, _parts(bench, method), seed, steerbench.__version__))
        found = record is not None
        record = record or measure(bench, method, seed, None if unsteered is None else unsteered.examples)
    except Exception as error:
        if unsteered is None:  # nothing can be compared without it
            raise
        outcome.failures.append(Failure(str(method.spec), seed, _reason(error)))
        return None
    if not found:  # outside of the try: a full disk ends the run
        store.write(record)
    outcome.found += found
    outcome.records.append(record)
    return record


def _reason(error: Exception) -> str:
    """Return the message of a user's mistake, and the whole traceback of anything else: a bug, mostly of the method."""
    if isinstance(error, SteerbenchError):
        return str(error)
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    return "".join(traceback.format_exception(error)).strip()


def measure(bench: Bench, method: Method, seed: int, unsteered: pd.DataFrame | None) -> Record:
    """Tune a method if the protocol says so, fit it, generate on the test prompts, score, and time it."""
    seconds: dict[str, float] = {}
    context = fit_context(bench, seed)
    with _timed(seconds, "tune"):
        tuned = _tuned(bench, method, context)
    with _timed(seconds, "fit"):
        steering = tuned.method.fit(context)
    with _timed(seconds, "generate"):
        responses = _responses(bench, steering, seed)
    truncated = bench.reward.truncated
    with _timed(seconds, "score"):
        found = _effect(bench, responses, steering)
        table = score(bench, responses, found, unsteered)
    truncated = bench.reward.truncated - truncated
    costs = latency(bench.lm, _median_prompt(bench), steering, bench.reward, progress=bench.options.progress)
    report = {"fit": context.report, "effect": found.report}
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
        steerbench=steerbench.__version__,
        labels=bench.labels,
        metrics=means(table),
        counts=bench.counts,
        environment={"batch_size": bench.options.batch_size, **environment(bench.lm.device)},
        steering=steering.digest(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        examples=table,
        **measured,
    )


def _tuned(bench: Bench, method: Method, context: FitContext) -> Tuned:
    protocol = bench.protocol
    validation = Validation(bench.validation, bench.encoder, protocol.objective, with_kl=protocol.match_kl is not None)
    if protocol.match_kl is None:
        return tune(method, context, validation, protocol.tuning_budget)
    return match(method, context, validation, protocol.match_kl, protocol.tuning_budget)


def _responses(bench: Bench, steering: Steering, seed: int) -> list[Response]:
    """Return the responses to all test prompts, one sample after the other."""
    options, prompts = bench.options, [e.prompt for e in bench.test]
    return [
        response
        for sample in range(bench.protocol.n_samples)
        for response in generate(
            bench.lm,
            prompts,
            steering,
            bench.protocol.decoding,
            seed=seed,
            sample=sample,
            reward=bench.reward,
            batch_size=options.batch_size,
            progress=options.progress,
        )
    ]


def _effect(bench: Bench, responses: Sequence[Response], steering: Steering) -> Effect:
    options, prompts = bench.options, [e.prompt for e in bench.test_examples]
    return effect(
        bench.lm,
        prompts,
        responses,
        steering,
        decoding=bench.protocol.decoding,
        batch_size=options.batch_size,
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
