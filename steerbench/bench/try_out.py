"""Show what methods make of a few prompts, without a benchmark around them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from steerbench.bench.protocol import FitSettings
from steerbench.bench.setup import Options, Setup
from steerbench.bench.units import plan
from steerbench.data.dialogue import user
from steerbench.engine.generate import generate
from steerbench.errors import SteerbenchError
from steerbench.models.response import Response


class Sample(NamedTuple):
    """What one method makes of the prompts."""

    method: str
    responses: list[Response]
    report: dict[str, Any]
    """What the method says about its fit, by its parts."""


def sample(
    prompts: Sequence[str], methods: str, settings: FitSettings, options: Options = Options(), seed: int = 0
) -> Iterator[Sample]:
    """Yield what each method makes of the prompts, the unsteered model first.

    Data are read when a method first learns from them. Raises SteerbenchError, also where a method cannot be fitted.
    """
    chosen, setup = plan(methods), Setup(settings, options)
    dialogues = [user(_readable(prompt)) for prompt in prompts]
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
            batch_size=options.batch_size,
            progress=options.progress,
        )
        yield Sample(str(method.spec), responses, context.report)


def _readable(prompt: str) -> str:
    """Refuse a prompt without text, and bytes that the shell passed on and that are no UTF-8."""
    if any("\ud800" <= sign <= "\udfff" for sign in prompt):
        raise SteerbenchError(f"the prompt {prompt!r} is not UTF-8; convert it first.")
    if not prompt.strip():
        raise SteerbenchError("a prompt has no text; give a question in quotes.")
    return prompt
