"""Show what methods make of a few prompts, without a benchmark around them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch

from steerbench import registry, testbed
from steerbench.data import folder_of, load_data
from steerbench.dialogue import Dialogue, user
from steerbench.errors import SteerbenchError
from steerbench.generation import generate
from steerbench.harness import plan
from steerbench.lm import LanguageModel
from steerbench.machine import dtype_of, pick_device, use_threads
from steerbench.progress import Progress, silent
from steerbench.protocol import Decoding, Protocol
from steerbench.response import Response
from steerbench.reward import Reward, RewardModel
from steerbench.selection import fitting, prompt_limit
from steerbench.steerer import FitContext
from steerbench.task import Example


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What `sample` needs: a model, and where methods learn from."""

    model: str = testbed.NAME
    reward_model: str | None = None
    task: str = "hh_rlhf"
    data: Path | None = None
    n_train: int = 512
    decoding: Decoding = field(default_factory=Decoding)
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"

    @property
    def complete(self) -> "Sampling":
        """The same with the testbed's reward and data where its model is used."""
        if testbed.named(self.model) is None:
            return self
        protocol = Protocol(task=self.task, model=self.model, reward_model=self.reward_model, data=self.data).complete
        return replace(self, model=protocol.model, reward_model=protocol.reward_model, data=protocol.data)


class _NoReward(Reward):
    """Stands in where no reward model was given, and says so when it is asked."""

    name, revision = "none", "none"

    def check(self) -> None:
        raise SteerbenchError("this method learns from a reward; give one with --reward-model.")

    def score(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str], progress: Progress = silent
    ) -> torch.Tensor:
        self.check()
        return torch.zeros(0)


class _Lazy(Sequence[Example]):
    """The train split, read when a method first asks for it: a static prompt needs none."""

    def __init__(self, lm: LanguageModel, settings: Sampling) -> None:
        self._lm, self._settings = lm, settings

    @cached_property
    def _examples(self) -> list[Example]:
        s = self._settings
        data = load_data(registry.load("tasks", s.task)(), folder_of(s.task, s.data))
        limit = prompt_limit(self._lm, s.decoding.max_new_tokens, None)
        found = fitting(self._lm, data.train, s.n_train, limit, Counter())
        if not found:
            raise SteerbenchError(f"no training prompt has at most {limit} tokens; lower --max-new-tokens.")
        return found

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        return self._examples[index]


class Sample(NamedTuple):
    """What one method makes of the prompts."""

    method: str
    responses: list[Response]
    report: dict[str, Any]
    """What the method says about its fit, by its parts."""


def sample(prompts: Sequence[str], methods: str, settings: Sampling, progress: Progress = silent) -> Iterator[Sample]:
    """Yield what each method makes of the prompts, the unsteered model first."""
    chosen, settings = plan(methods), settings.complete
    registry.load("tasks", settings.task)  # a wrong name is told even if nothing is learned from it
    dialogues: list[Dialogue] = [user(_readable(prompt)) for prompt in prompts]
    device = pick_device(settings.device)
    lm = LanguageModel.load(settings.model, device=device, dtype=dtype_of(settings.dtype))
    use_threads(sum(p.numel() for p in lm.model.parameters()), device)
    name = settings.reward_model
    reward = RewardModel.load(name, device=device) if name else _NoReward()
    context = FitContext(
        lm=lm,
        examples=_Lazy(lm, settings),
        reward=reward,
        seed=settings.seed,
        decoding=settings.decoding,
        progress=progress,
    )
    for method in chosen:
        own = replace(context, report={})
        steering = method.fit(own)
        responses = generate(
            lm, dialogues, steering, settings.decoding, seed=settings.seed, reward=reward, progress=progress
        )
        yield Sample(str(method.spec), responses, own.report)


def _readable(prompt: str) -> str:
    """Refuse a prompt without text, and bytes that the shell passed on and that are no UTF-8."""
    if any("\ud800" <= sign <= "\udfff" for sign in prompt):
        raise SteerbenchError(f"the prompt {prompt!r} is not UTF-8; convert it first.")
    if not prompt.strip():
        raise SteerbenchError("a prompt has no text; give a question in quotes.")
    return prompt
