"""How responses are drawn."""

from dataclasses import dataclass
from math import inf
from typing import Any, Literal, get_args

from steerbench.errors import SteerbenchError, suggest

Thinking = Literal["off", "strip", "keep"]
"""What becomes of the thoughts of a model that reasons before it answers. It changes nothing for one that does not.

- `off`: the prompt ends behind an empty thought, as the chat template writes it, and the answer follows
- `strip`: the model thinks as its template has it, and the answer alone is the response that is scored and fitted on
- `keep`: the thought is a part of the response, and scored with it
"""


TRANSFORMERS, VLLM = "transformers", "vllm"
ENGINES = (TRANSFORMERS, VLLM)
"""What can generate; the first is the reference."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Generation settings. Temperature 0 is greedy, without top_k and top_p; top_k 0 and top_p 1 switch off."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        allowed = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "temperature": (0 <= self.temperature < inf, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, up to 1"),
        }
        faults = [f"{name} {getattr(self, name)} ({range_})" for name, (holds, range_) in allowed.items() if not holds]
        if faults:
            raise SteerbenchError(f"generation settings are out of range: {', '.join(faults)}.")
        if not self.temperature and (self.top_k or self.top_p < 1):  # two protocols with the same responses
            raise SteerbenchError(
                f"top_k {self.top_k} and top_p {self.top_p} change nothing at temperature 0, which takes the likeliest "
                f"token; leave them out, or give a temperature above 0, such as 1."
            )
        as_floats(self, "temperature", "top_p")


def check_thinking(value: str) -> None:
    """Raise SteerbenchError for what is not in `Thinking`."""
    if value not in get_args(Thinking):
        raise SteerbenchError(suggest("thinking", value, list(get_args(Thinking))))


def as_floats(frozen: Any, *fields: str) -> None:
    """Make 1 and 1.0 one protocol: as JSON, they would be two."""
    for name in fields:
        if (value := getattr(frozen, name)) is not None:
            object.__setattr__(frozen, name, float(value))
