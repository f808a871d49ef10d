"""Where the two sides of a contrast come from: the task's preferences, the model's own words, or two personas."""

from typing import Literal, get_args

from steerbench.errors import SteerbenchError, suggest
from steerbench.self_generated import personas, self_generated
from steerbench.steerer import FitContext, Pair

PairSource = Literal["preferences", "self_generated", "personas"]
"""
- `preferences`: preferred and other reply of the training data, after the same prompt
- `self_generated`: the model's own helpful and useless reply, after the same prompt: see `self_generated`
- `personas`: no reply; the prompt under a helpful and under a useless persona
"""


def pairs_from(context: FitContext, source: PairSource) -> list[Pair]:
    """Return the pairs of a source. Raises SteerbenchError if it gives none."""
    if source == "preferences":
        return context.pairs()
    if source == "self_generated":
        return [generated.pair for generated in self_generated(context).kept]
    if source == "personas":
        return personas(context)
    raise SteerbenchError(suggest("source of pairs", source, list(get_args(PairSource))))
