"""Where the two sides of a contrast come from: the task's preferences, the model's own words, or two personas."""

from typing import Literal, get_args

from steerbench.data.task import Example
from steerbench.errors import SteerbenchError, suggest
from steerbench.learn.context import FitContext, Pair
from steerbench.learn.self_generation import behind, personas, self_generated

PairSource = Literal["preferences", "choices", "self_generated", "personas"]
"""
- `preferences`: preferred and other reply of the training data, after the same prompt
- `choices`: the prompt with both replies as choices (A) and (B), and as replies the two letters; read them at
  `last_response`. The preferred reply is A in every other pair, so that the letters cancel
- `self_generated`: the model's own helpful and useless reply, after the same prompt: see `self_generated`
- `personas`: no reply; the prompt under a helpful and under a useless persona
"""


def pairs_from(context: FitContext, source: PairSource) -> list[Pair]:
    """Return the pairs of a source. Raises SteerbenchError if it gives none."""
    if source == "preferences":
        return context.pairs()
    if source == "choices":
        return context.once("choices", lambda: _choices(context))
    if source == "self_generated":
        return [generated.pair for generated in self_generated(context).kept]
    if source == "personas":
        return personas(context)
    raise SteerbenchError(suggest("source of pairs", source, list(get_args(PairSource))))


def _choices(context: FitContext) -> list[Pair]:
    room = context.lm.context_length
    pairs = [_choice(context, example, i % 2 == 0) for i, example in enumerate(context.examples)]
    fitting = [pair for pair in pairs if max(len(t.prompt) + len(t.response) for t in pair) <= room]
    if not fitting:
        raise SteerbenchError(f"no training prompt leaves room for both replies in the context of {room}.")
    return fitting


def _choice(context: FitContext, example: Example, preferred_first: bool) -> Pair:
    """Return the letters of both replies; the response ends in the letter, before the bracket that closes it."""
    replies, letters = (example.chosen, example.rejected), ("(A", "(B")
    first, second = replies if preferred_first else replies[::-1]
    question = behind(example.prompt, f"\nChoices:\n (A) {first}\n (B) {second}")
    return Pair(*(context.lm.tokens(question, x) for x in (letters if preferred_first else letters[::-1])))
