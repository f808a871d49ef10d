"""The protocol: every choice that must be equal for two scores to be comparable."""

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Literal, Self, get_args

from steerbench import testbed
from steerbench.decoding import ENGINES, TRANSFORMERS, Decoding, Thinking, as_floats, check_thinking
from steerbench.errors import SteerbenchError, suggest
from steerbench.plugins import registry
from steerbench.plugins.spec import Part, parse_tasks

DEFAULT_ENCODER = "princeton-nlp/sup-simcse-bert-base-uncased"

Objective = Literal["reward", "sum"]
"""What tuning maximises on validation: the gain of reward, in standard deviations of the unsteered model's rewards; or
coherence + diversity + reward, by which Kong et al. 2024 (arXiv 2406.05954) chose theirs."""
SamplerName = Literal["coarse", "optuna"]
"""What says which settings tuning tries: coarse to fine, or Optuna's tree-structured Parzen estimator."""
COARSE: SamplerName = "coarse"
BLIND_TRIALS = 16
"""Trials up to which Optuna is refused: it draws the first ten blindly."""
MATCH_BUDGET = 8
"""Trials of `match_kl` where no budget is given."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What methods are fitted on: the choices that `run`, `generate` and `latency` share."""

    task: str = "hh_rlhf"
    """Name of a task, with settings as `shp:min_ratio=2`."""
    model: str = testbed.NAME
    """Folder, or `org/name[@revision]` of the Hub, or `testbed`, or the folder of a testbed."""
    reward_model: str | None = None
    """The reward that methods may learn from; it scores too. None: the testbed's."""
    data: Path | None = None
    """File or folder in the task's original schema. None: the testbed's, or the Hub's pinned revision."""
    n_train: int = 512
    """Training examples that methods may learn from."""
    max_prompt_tokens: int | None = None
    """Longer prompts are left out and counted. None: 512, or what leaves room in the context for a static prompt."""
    decoding: Decoding = field(default_factory=Decoding)
    thinking: Thinking = "off"
    """What becomes of a model's thoughts: off, strip or keep. Off by default: the replies of the data sets that methods
    learn from have none, and 128 new tokens seldom get beyond one."""
    dtype: str = "auto"
    """Of the language model: auto (float32 on a CPU and for a testbed, else the checkpoint's own), float32, bfloat16,
    float16."""
    engine: str = TRANSFORMERS
    """What generates: transformers, or vllm."""

    def __post_init__(self) -> None:
        check_thinking(self.thinking)
        if self.engine not in ENGINES:
            raise SteerbenchError(suggest("engine", self.engine, list(ENGINES)))

    @property
    def task_part(self) -> Part:
        """The task, read. Raises SteerbenchError if it is none, or more than one."""
        parts = parse_tasks(self.task)
        if len(parts) > 1:
            raise SteerbenchError(f"task {self.task!r} is more than one; give each a run of its own.")
        return parts[0]

    @property
    def complete(self) -> Self:
        """The same with the testbed's parts where its model is used and nothing else was given."""
        home = testbed.named(self.model)
        data, dtype = self.data, self.dtype
        if home:
            of_task = home.data / self.task_part.name
            data = data or (home.data if of_task.is_dir() else None)
            dtype = "float32" if dtype == "auto" else dtype  # so that every device measures the same
        return replace(
            self,
            model=home.part("lm") if home else self.model,
            reward_model=_part(home, "reward", self.reward_model),
            data=data,
            dtype=dtype,
        )


@dataclass(frozen=True, kw_only=True)
class Protocol(FitSettings):
    """What a user chooses. `Bench.key` says what these choices came to, and is what is compared."""

    held_out_reward: str | None = None
    """A reward that only scores. None: the testbed's, or none."""
    encoder: str | None = None
    """Sentence encoder of the coherence metric. None: the testbed's, or `DEFAULT_ENCODER`."""
    n_examples: int = 256
    """Test prompts."""
    n_samples: int = 1
    """Responses to each test prompt, for each seed."""
    tuning_budget: int = 0
    """Trials per method on the validation split. 0: hyperparameters as given."""
    objective: Objective = "reward"
    """What the trials are compared by."""
    sampler: SamplerName = COARSE
    """What says which hyperparameters are tried: `coarse` to fine, or `optuna`."""
    match_kl: float | None = None
    """KL(steered || unsteered) per token, in nats, that every strength is set for, instead of the objective."""
    n_validation: int = 128
    """Validation prompts that a trial is scored on."""
    transductive: bool = False
    """Whether methods may see the test prompts, without replies, in place of the training prompts."""
    capability: str | None = None
    """Name of a task with choices, such as `mmlu`, by which damage is told: how much worse a steering scores there."""
    capability_data: Path | None = None
    """Its file or folder. None: the folder of its name in `data`, or the Hub's pinned revision."""
    n_capability: int = 256
    """Its questions."""
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_examples < 1 or self.n_train < 1 or not self.seeds:
            raise SteerbenchError("n_examples and n_train must be at least 1, and seeds needs at least one number.")
        if self.tuning_budget < 0 or self.n_validation < 1:
            raise SteerbenchError("tuning_budget must be 0 or more, and n_validation at least 1.")
        if self.objective not in get_args(Objective):
            raise SteerbenchError(suggest("objective", self.objective, list(get_args(Objective))))
        if self.objective != "reward" and (not self.tuning_budget or self.match_kl is not None):
            raise SteerbenchError(f"objective {self.objective!r} is for tuning; add --tune 8, and drop --match-kl.")
        self._check_sampler()
        if self.match_kl is not None and not 0 < self.match_kl < inf:
            raise SteerbenchError(f"match_kl is {self.match_kl}; it must be above 0, in nats per token, such as 0.1.")
        idle = self.capability_data is not None or self.n_capability != Protocol.n_capability
        if self.n_capability < 1 or (idle and not self.capability):
            raise SteerbenchError(
                "n_capability must be at least 1, and it and capability_data need a capability, such as mmlu."
            )
        if self.n_samples < 1 or (self.n_samples > 1 and not self.decoding.temperature):
            raise SteerbenchError(
                f"n_samples is {self.n_samples}; it must be 1 or more, and more than 1 needs a temperature above 0: "
                f"greedy responses are all alike."
            )
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise SteerbenchError(f"seeds {self.seeds} must be different numbers, none below 0.")
        as_floats(self, "match_kl")

    def _check_sampler(self) -> None:
        if self.sampler not in get_args(SamplerName):
            raise SteerbenchError(suggest("sampler", self.sampler, list(get_args(SamplerName))))
        if self.sampler == COARSE:
            return
        if self.tuning_budget <= BLIND_TRIALS or self.match_kl is not None:
            raise SteerbenchError(
                f"sampler {self.sampler!r} is for tuning with more than {BLIND_TRIALS} trials, for it draws the first "
                f"ones blindly; add --tune {2 * BLIND_TRIALS}, and drop --match-kl."
            )
        if find_spec("optuna") is None:
            raise SteerbenchError(
                "--sampler optuna needs the package optuna, which is not installed: pip install 'steerbench[optuna]'."
            )

    def _check_needs_no_reward(self) -> None:
        name = self.task_part.name
        if registry.load("tasks", name).needs_reward:
            raise SteerbenchError(
                f"model {self.model!r} needs a reward model for {name}; give one with --reward-model. The embedded "
                f"testbed, --model {testbed.NAME}, needs none, nor do tasks that score given answers or refusals."
            )
        if self.tuning_budget and self.match_kl is None:
            raise SteerbenchError(
                f"tuning goes by a reward model, and there is none; give one with --reward-model. {name} needs none "
                f"with settings as given, with --match-kl, or with --sweep."
            )

    @property
    def capability_part(self) -> Part | None:
        """The task of the capability check, read. Raises SteerbenchError if it is more than one."""
        parts = parse_tasks(self.capability) if self.capability else []
        if len(parts) > 1:
            raise SteerbenchError(f"capability {self.capability!r} is more than one task; give one, such as mmlu.")
        return parts[0] if parts else None

    @property
    def budget(self) -> int:
        """Trials per method: those asked for, or what an equal KL takes."""
        return self.tuning_budget or (MATCH_BUDGET if self.match_kl else 0)

    @property
    def complete(self) -> Self:
        """The same with nothing left open. Raises SteerbenchError where there is no reward and one is needed."""
        home = testbed.named(self.model)
        if home is None and self.reward_model is None:
            self._check_needs_no_reward()
        return replace(
            super().complete,
            held_out_reward=_part(home, "held_out_reward", self.held_out_reward),
            encoder=_part(home, "encoder", self.encoder) or DEFAULT_ENCODER,
            tuning_budget=self.budget,
        )


def _part(home: testbed.Testbed | None, part: str, given: str | None) -> str | None:
    """Return the model given, or the testbed's; `testbed` and `testbed/reward` stand for a path."""
    if given is None:
        return home.part(part) if home else None
    return testbed.part_path(given, part)
