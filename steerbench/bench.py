"""Everything that all methods of one run share: the model, the rewards, the examples, and the protocol's key."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import steerbench
from steerbench import registry, testbed
from steerbench.data import folder_of, load_data
from steerbench.encoder import SentenceEncoder
from steerbench.errors import SteerbenchError
from steerbench.lm import LanguageModel
from steerbench.machine import dtype_of, pick_device, use_threads
from steerbench.pretrained import check_path
from steerbench.progress import Progress, silent
from steerbench.protocol import Key, Protocol, asset, ids_hash
from steerbench.reward import Reward, RewardModel
from steerbench.selection import fitting, prompt_limit
from steerbench.task import Example, TaskData


@dataclass(frozen=True, kw_only=True)
class Options:
    """What must not change a score: where and how fast it is measured."""

    out: Path = Path("runs")
    device: str = "auto"
    batch_size: int = 32
    """Prompts at once; halved where the memory runs out."""
    progress: Progress = silent


@dataclass(kw_only=True)
class Bench:
    """A loaded protocol."""

    protocol: Protocol
    """With nothing left open."""
    options: Options
    version: int
    """Of the task."""
    lm: LanguageModel
    reward: Reward
    held_out: Reward | None
    encoder: SentenceEncoder
    train: Sequence[Example]
    validation: Sequence[Example]
    """For tuning alone; empty without it."""
    test: Sequence[Example]
    max_prompt_tokens: int
    data_revision: str
    counts: dict[str, int]
    """Records and prompts left out, by reason."""
    shared: dict[object, Any] = field(default_factory=dict)
    """Rollouts and activations, computed once for all methods."""

    @property
    def test_examples(self) -> list[Example]:
        """The test examples as often as there are samples: the first sample of all, then the second."""
        return list(self.test) * self.protocol.n_samples

    @cached_property
    def key(self) -> Key:
        """What the protocol came to: equal keys, comparable scores. Device, batch size and paths are not in it."""
        p = self.protocol
        return {
            "task": self.task,
            "task_version": self.version,
            "data": self.data_revision,
            "split": "test",
            "n_examples": len(self.test),
            "n_samples": p.n_samples,
            "examples": ids_hash([e.id for e in self.test]),
            "n_train": len(self.train),
            "train_examples": ids_hash([e.id for e in self.train]),
            "n_validation": len(self.validation),
            "validation_examples": ids_hash([e.id for e in self.validation]) if self.validation else None,
            "max_prompt_tokens": self.max_prompt_tokens,
            "model": asset(self.lm.name, self.lm.revision),
            "dtype": str(self.lm.dtype).removeprefix("torch."),
            "prompt_format": self.lm.format.name,
            **asdict(p.decoding),
            "reward_model": asset(self.reward.name, self.reward.revision),
            "held_out_reward": asset(self.held_out.name, self.held_out.revision) if self.held_out else None,
            "encoder": asset(self.encoder.name, self.encoder.revision),
            "tuning_budget": p.tuning_budget,
            "objective": (p.objective if p.match_kl is None else "kl") if p.tuning_budget else None,
            "match_kl": p.match_kl,
            **({"transductive": True} if p.transductive else {}),
            "seeds": list(p.seeds),
            "steerbench": ".".join(steerbench.__version__.split(".")[:2]),
        }

    @property
    def task(self) -> str:
        """Name of the task as tables and records show it: it says if anything in it belongs to a testbed."""
        p = self.protocol
        paths = [Path(name) for name in (p.model, p.reward_model, p.held_out_reward, p.encoder) if name]
        homes = [testbed.around(path) for path in [*paths, *([p.data] if p.data else [])]]
        return next((f"{home.name}-{p.task}" for home in homes if home), p.task)

    @property
    def has_gold(self) -> bool:
        """Whether the data are a testbed's, so that every response has a true score."""
        data = self.protocol.data
        home = testbed.around(data) if data else None
        return home is not None and data is not None and data.expanduser().resolve().is_relative_to(home.data)

    @property
    def labels(self) -> dict[str, str]:
        """Readable names for tables."""
        return {
            "task": self.task,
            "model": self.lm.name,
            "reward_model": self.reward.name,
            "held_out_reward": self.held_out.name if self.held_out else "",
            "encoder": self.encoder.name,
        }


def load_bench(protocol: Protocol, options: Options) -> Bench:
    """Load what a protocol names. Cheap things first, so that a mistake in them is told before a model is read."""
    task, protocol = registry.load("tasks", protocol.task)(), protocol.complete
    device = pick_device(options.device)
    for name in (protocol.model, protocol.reward_model, protocol.held_out_reward, protocol.encoder):
        if name is not None:
            check_path(name)
    size, held_out = options.batch_size, protocol.held_out_reward
    with options.progress(f"{protocol.task}: load", 4) as advance:
        data = load_data(task, folder_of(protocol.task, protocol.data))
        advance(1)
        lm = LanguageModel.load(protocol.model, device=device, dtype=dtype_of(protocol.dtype))
        chosen = _choose(protocol, lm, data)
        advance(1)
        reward = RewardModel.load(str(protocol.reward_model), device=device, batch_size=size)
        judge = RewardModel.load(held_out, device=device, batch_size=size) if held_out else None
        if judge and judge.revision == reward.revision:
            raise SteerbenchError(
                f"the held-out reward, {judge.name}, is the guiding reward itself; give another --held-out-reward."
            )
        advance(1)
        encoder = SentenceEncoder.load(str(protocol.encoder), device=device, batch_size=size)
        advance(1)
    use_threads(sum(p.numel() for p in lm.model.parameters()), device)
    return Bench(
        protocol=protocol,
        options=options,
        version=task.version,
        lm=lm,
        reward=reward,
        held_out=judge,
        encoder=encoder,
        data_revision=data.revision,
        **chosen._asdict(),
    )


class _Chosen(NamedTuple):
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    max_prompt_tokens: int
    counts: dict[str, int]


def _choose(protocol: Protocol, lm: LanguageModel, data: TaskData) -> _Chosen:
    """Choose the examples that the model can take. Raises SteerbenchError if there are none."""
    limit = prompt_limit(lm, protocol.decoding.max_new_tokens, protocol.max_prompt_tokens)
    counts = Counter(data.skipped)
    train = fitting(lm, data.train, protocol.n_train, limit, counts)
    n_validation = protocol.n_validation if protocol.tuning_budget else 0
    validation = fitting(lm, data.validation, n_validation, limit, counts)
    test = fitting(lm, data.test, protocol.n_examples, limit, counts)
    if missing := protocol.n_examples - len(test):
        counts["test prompts asked for that are not there"] = missing
    needed = {"training": train, "test": test} | ({"validation": validation} if n_validation else {})
    if empty := [split for split, examples in needed.items() if not examples]:
        raise SteerbenchError(
            f"no {empty[0]} prompt of {protocol.task} has at most {limit} tokens; raise "
            f"--max-prompt-tokens, lower --max-new-tokens, or take a model with a longer context."
        )
    return _Chosen(train, validation, test, limit, dict(counts))
