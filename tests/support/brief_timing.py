"""Timings for runs whose times nobody looks at: what is timed has tests of its own."""

import copy
from functools import cache
from typing import Any

from steerbench import LanguageModel, Steering
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.engine.timing import latency


def brief(lm: LanguageModel, *_: Any, **__: Any) -> dict[str, Any]:
    """Stand in for `latency`: what it found once in this process, on this machine, for a tiny model."""
    return copy.deepcopy(_measured())


@cache
def _measured() -> dict[str, Any]:
    lm = tiny.language_model("llama")
    return latency(lm, user("Hi"), Steering(), tiny.VowelReward(), new_tokens=2, rounds=1)
