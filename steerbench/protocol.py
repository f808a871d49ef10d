"""The protocol: every choice that must be equal for two scores to be comparable."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from steerbench import testbed
from steerbench.errors import SteerbenchError, suggest

DEFAULT_ENCODER = "princeton-nlp/sup-simcse-bert-base-uncased"

Objective = Literal["reward", "sum"]
"""What tuning maximises on validation: the gain of reward, in standard deviations of the unsteered model's rewards; or
coherence + diversity + reward, by which Kong et al. 2024 (arXiv 2406.05954) chose theirs."""
MATCH_BUDGET = 8
"""Trials of `match_kl` where no budget is given."""

Key = dict[str, Any]
"""The protocol as it was measured: names and paths replaced by revisions and content hashes."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Generation settings. Temperature 0 is greedy; top_k 0 and top_p 1 switch off."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.temperature < inf or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise SteerbenchError(
                f"generation settings are out of range: max_new_tokens {self.max_new_tokens} (1 or more), "
                f"temperature {self.temperature} (0 or more), top_k {self.top_k} (0 or more), "
                f"top_p {self.top_p} (above 0, up to 1)."
            )
        _as_floats(self, "temperature", "top_p")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a user chooses. `Bench.key` says what these choices came to, and is what is compared."""

    task: str = "hh_rlhf"
    model: str = testbed.NAME
    """Folder, or `org/name[@revision]` of the Hub, or `testbed`, or the folder of a testbed."""
    reward_model: str | None = None
    """The reward that methods may learn from; it scores too. None: the testbed's."""
    held_out_reward: str | None = None
    """A reward that only scores. None: the testbed's, or none."""
    encoder: str | None = None
    """Sentence encoder of the coherence metric. None: the testbed's, or `DEFAULT_ENCODER`."""
    data: Path | None = None
    """File or folder in the task's original schema. None: the testbed's, or the Hub's pinned revision."""
    n_examples: int = 256
    """Test prompts."""
    n_samples: int = 1
    """Responses to each test prompt, for each seed."""
    n_train: int = 512
    """Training examples that methods may learn from."""
    tuning_budget: int = 0
    """Trials per method on the validation split. 0: hyperparameters as given."""
    objective: Objective = "reward"
    """What the trials are compared by."""
    match_kl: float | None = None
    """KL(steered || unsteered) per token, in nats, that every strength is set for, instead of the objective."""
    n_validation: int = 128
    """Validation prompts that a trial is scored on."""
    transductive: bool = False
    """Whether methods may see the test prompts, without replies, in place of the training prompts."""
    max_prompt_tokens: int | None = None
    """Longer prompts are left out and counted. None: 512, or what leaves room in the context for a static prompt."""
    decoding: Decoding = field(default_factory=Decoding)
    seeds: tuple[int, ...] = (0,)
    dtype: str = "auto"
    """Of the language model: auto (float32 on a CPU and for a testbed, else the checkpoint's own), float32, bfloat16,
    float16."""

    def __post_init__(self) -> None:
        if self.n_examples < 1 or self.n_train < 1 or not self.seeds:
            raise SteerbenchError("n_examples and n_train must be at least 1, and seeds needs at least one number.")
        if self.tuning_budget < 0 or self.n_validation < 1:
            raise SteerbenchError("tuning_budget must be 0 or more, and n_validation at least 1.")
        if self.objective not in get_args(Objective):
            raise SteerbenchError(suggest("objective", self.objective, list(get_args(Objective))))
        if self.objective != "reward" and (not self.tuning_budget or self.match_kl is not None):
            raise SteerbenchError(f"objective {self.objective!r} is for tuning; add --tune 8, and drop --match-kl.")
        if self.match_kl is not None and not 0 < self.match_kl < inf:
            raise SteerbenchError(f"match_kl is {self.match_kl}; it must be above 0, in nats per token, such as 0.1.")
        if self.n_samples < 1 or (self.n_samples > 1 and not self.decoding.temperature):
            raise SteerbenchError(
                f"n_samples is {self.n_samples}; it must be 1 or more, and more than 1 needs a temperature above 0: "
                f"greedy responses are all alike."
            )
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise SteerbenchError(f"seeds {self.seeds} must be different numbers, none below 0.")
        _as_floats(self, "match_kl")

    @property
    def complete(self) -> "Protocol":
        """The same with nothing left open. Raises SteerbenchError if a model is given without a reward model."""
        home = testbed.named(self.model)
        if home is None and self.reward_model is None:
            raise SteerbenchError(
                f"model {self.model!r} needs a reward model; give one with --reward-model. The embedded testbed, "
                f"--model {testbed.NAME}, needs none."
            )
        data, dtype = self.data, self.dtype
        if home:
            data = data or (home.data if (home.data / self.task).is_dir() else None)
            dtype = "float32" if dtype == "auto" else dtype  # so that every device measures the same
        return replace(
            self,
            model=home.part("lm") if home else self.model,
            reward_model=_part(home, "reward", self.reward_model),
            held_out_reward=_part(home, "held_out_reward", self.held_out_reward),
            encoder=_part(home, "encoder", self.encoder) or DEFAULT_ENCODER,
            data=data,
            dtype=dtype,
            tuning_budget=self.tuning_budget or (MATCH_BUDGET if self.match_kl else 0),
        )


def _as_floats(frozen: Any, *fields: str) -> None:
    """Make 1 and 1.0 one protocol: as JSON, they would be two."""
    for name in fields:
        if (value := getattr(frozen, name)) is not None:
            object.__setattr__(frozen, name, float(value))


def _part(home: testbed.Testbed | None, part: str, given: str | None) -> str | None:
    """Return the model given, or the testbed's; `testbed` and `testbed/reward` stand for a path."""
    if given is None:
        return home.part(part) if home else None
    return testbed.part_path(given, part)


class Difference(NamedTuple):
    """A field in which two protocols differ."""

    field: str
    left: Any
    right: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.left} != {self.right}"


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    """Return the fields in which two keys differ, in the order of the key."""
    names = [*left, *(name for name in right if name not in left)]
    return [Difference(n, left.get(n), right.get(n)) for n in names if left.get(n) != right.get(n)]


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def asset(name: str, revision: str) -> str:
    """Return what identifies a model: `name@commit` for the Hub, the content hash alone for a folder."""
    return revision if revision.startswith("sha256:") else f"{name}@{revision}"


def ids_hash(ids: Sequence[str]) -> str:
    """Return a short hash of the examples used, in order."""
    return fingerprint(list(ids))[:16]
