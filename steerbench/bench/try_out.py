"""Show what methods make of a few prompts, without a benchmark around them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from steerbench.bench.method import Method, at_strengths, dial_of
from steerbench.bench.protocol import FitSettings
from steerbench.bench.setup import Options, Setup
from steerbench.bench.units import plan
from steerbench.data.dialogue import user
from steerbench.engine.effect import effect
from steerbench.engine.generate import generate
from steerbench.errors import SteerbenchError
from steerbench.models.response import Response
from steerbench.plugins.spec import UNSTEERED


class Sample(NamedTuple):
    """What one method makes of the prompts."""

    method: str
    responses: list[Response]
    report: dict[str, Any]
    """What the method says about its fit, by its parts."""
    kl: list[float]
    """For each response, KL(steered || unsteered) per token in nats; NaN where it is not known: see `effect`."""
    strength: str
    """What sets how strongly it acts, as `strength 1`; empty where it is in the method's name, or there is nothing."""


def sample(
    prompts: Sequence[str],
    methods: str,
    settings: FitSettings,
    options: Options = Options(),
    seed: int = 0,
    strengths: Sequence[float] = (),
) -> Iterator[Sample]:
    """Yield what each method makes of the prompts, at each of some strengths, the unsteered model first.

    A method without a strength to set is shown as it is. Data are read when a method first learns from them. Raises
    SteerbenchError, also where a method cannot be fitted, and where no method has a strength.
    """
    chosen, setup = _planned(methods, strengths), Setup(settings, options)
    dialogues = [user(_readable(prompt)) for prompt in prompts]
    setup.check_settings(chosen)
    for method in chosen:
        context = setup.context(seed)
        steering = method.fit(context)
        responses = generate(
            setup.lm,
            dialogues,
            steering,
            settings.decoding,
            seed=seed,
            reward=setup.reward,
            batch_size=setup.batch_size,
            engine=setup.engine,
            progress=options.progress,
        )
        found = effect(
            setup.lm,
            dialogues,
            responses,
            steering,
            decoding=settings.decoding,
            reward=setup.reward,
            batch_size=setup.batch_size,
            progress=options.progress,
        )
        yield Sample(str(method.spec), responses, context.report, found.kl, _strength(method))


def _planned(methods: str, strengths: Sequence[float]) -> list[Method]:
    """Return the methods at each strength, the unsteered model first."""
    chosen = plan(methods)
    if not strengths:
        return chosen
    if all(dial_of(method) is None for method in chosen):
        named = [str(method.spec) for method in chosen if str(method.spec) != UNSTEERED]
        fault = f"{' and '.join(named)} has no strength to set" if named else "--strength needs a method"
        raise SteerbenchError(f"{fault}; give one that has, such as --methods caa.")
    return [one for method in chosen for one in at_strengths(method, strengths)]


def _strength(method: Method) -> str:
    dial = dial_of(method)
    if dial is None or dial.name in method.spec.parts[dial.part].settings:
        return ""
    value = getattr(method.steerers[dial.part], dial.name)
    return "" if value is None else f"{dial.name} {value:g}"


def _readable(prompt: str) -> str:
    """Refuse a prompt without text, and bytes that the shell passed on and that are no UTF-8."""
    if any("\ud800" <= sign <= "\udfff" for sign in prompt):
        raise SteerbenchError(f"the prompt {prompt!r} is not UTF-8; convert it first.")
    if not prompt.strip():
        raise SteerbenchError("a prompt has no text; give a question in quotes.")
    return prompt
