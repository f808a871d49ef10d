"""What methods are fitted on and measured with, loaded once for all of them, and the protocol's key."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from steerbench import testbed
from steerbench.bench.capability import Capability
from steerbench.bench.engines import check_engine, engine_of
from steerbench.bench.method import Method
from steerbench.bench.prompt_limit import MOST, fitting, prompt_limit
from steerbench.bench.protocol import COARSE, DEFAULT_ENCODER, FitSettings, Protocol
from steerbench.bench.train_split import TrainSplit
from steerbench.data.splits import folder_of, load_data
from steerbench.data.task import Example, Task, TaskData
from steerbench.decoding import TRANSFORMERS
from steerbench.engine.backends.generation_engine import GenerationEngine
from steerbench.engine.kept_prompts import KeptPrompts
from steerbench.engine.kept_reward import KeptReward
from steerbench.errors import SteerbenchError
from steerbench.learn.context import FitContext
from steerbench.learn.fitting import NoReward
from steerbench.learn.study_folder import StudyFolder
from steerbench.models.chat_template import TEMPLATE_DATE
from steerbench.models.checkpoint import check_path, configured
from steerbench.models.encoder import SentenceEncoder
from steerbench.models.language_model import LanguageModel
from steerbench.models.machine import dtype_of, fix_threads, pick_device, use_threads
from steerbench.models.pieces import BatchSize, automatic
from steerbench.models.revision import display_name
from steerbench.models.reward import Reward
from steerbench.models.shape import shape, shape_of
from steerbench.plugins.settings import check_values
from steerbench.plugins.spec import build_task, changed_settings, label_of
from steerbench.progress import Progress, silent
from steerbench.records.identity import Key, asset, ids_hash
from steerbench.records.record import Record
from steerbench.version import __version__


@dataclass(frozen=True, kw_only=True)
class Options:
    """What must not change a score: where and how fast it is measured."""

    out: Path = Path("runs")
    device: str = "auto"
    device_map: str | None = None
    """How accelerate spreads the language model over several GPUs: `auto`. None: it is on the device."""
    batch_size: BatchSize = "auto"
    """Most prompts at once; halved where the memory runs out. `auto`: what suits the device, by its memory."""
    threads: int | None = None
    """CPU threads; default: what is fastest now for a model of that size, by a short measurement."""
    shared: Path | None = None
    """Folder in which rollouts and states are kept for other processes and later runs. None: for this run alone."""
    progress: Progress = silent
    written: Callable[[Record], None] | None = None
    """What is told of each record that was measured, once it has been written; such as `records.trackers.teller`."""


class Setup:
    """What methods are fitted on. Each thing is loaded when it is first asked for: a static prompt needs no data."""

    def __init__(self, settings: FitSettings, options: Options) -> None:
        """Raises SteerbenchError for a wrong task or device, before anything heavy is loaded."""
        if options.device_map not in (None, "auto"):
            raise SteerbenchError(f"device map {options.device_map!r} is not known; give auto, or leave it out.")
        if options.device_map and settings.engine != TRANSFORMERS:
            raise SteerbenchError(
                f"--device-map spreads transformers' model, and {settings.engine} places its own; leave one out."
            )
        self.task_name = settings.task_part.name
        self.task: Task = build_task(settings.task_part)
        self.settings, self.options = settings.complete, options
        self.device = pick_device(options.device)
        if options.threads is not None:
            fix_threads(options.threads)
        self.shared: dict[object, Any] = {}
        """Rollouts and activations, computed once for all methods."""
        self.counts: Counter[str] = Counter()
        """Records and prompts left out, by reason."""

    @cached_property
    def data(self) -> TaskData:
        """All examples of the task."""
        found = load_data(self.task, folder_of(self.task_name, self.settings.data))
        self.counts.update(found.skipped)
        return found

    @cached_property
    def lm(self) -> LanguageModel:
        """The frozen model, with as many threads as suit its size."""
        chosen, dtype = self.settings, dtype_of(self.settings.dtype)
        lm = LanguageModel.load(
            chosen.model,
            device=self.device,
            dtype=dtype,
            thinking=chosen.thinking,
            device_map=self.options.device_map,
        )
        if self.options.threads is None:
            use_threads(sum(p.numel() for p in lm.model.parameters()), self.device)
        return lm

    @cached_property
    def kept(self) -> KeptPrompts:
        """Prompts that are read once for all methods and trials."""
        return KeptPrompts(self.lm)

    @cached_property
    def kept_questions(self) -> KeptPrompts:
        """Those of the capability check, which would drive the study's own out."""
        return KeptPrompts(self.lm)

    @cached_property
    def engine(self) -> GenerationEngine | None:
        """What generates in place of transformers; started when it first does."""
        return engine_of(self.settings.engine, self.settings.model)

    def close(self) -> None:
        """End the engine, if one was started."""
        if (started := vars(self).get("engine")) is not None:
            started.close()

    @property
    def engine_facts(self) -> dict[str, str]:
        """What generated, and its version, where it was not transformers."""
        return {} if self.engine is None else {"engine": self.engine.name, **self.engine.facts}

    @cached_property
    def reward(self) -> Reward:
        """The guiding reward; without one, what says so when it is asked."""
        name = self.settings.reward_model
        return self._reward_model(name) if name else NoReward()

    def check_settings(self, methods: Sequence[Method]) -> None:
        """Raise SteerbenchError for a setting that the model is too small for, or the engine cannot carry.

        Loads the configuration of the model at most.
        """
        check_engine(self.settings.engine, [s for method in methods for s in method.steerers])
        loaded = vars(self).get("lm")
        known = shape(loaded.model.config) if loaded else shape_of(self.settings.model)
        name = loaded.name if loaded else display_name(self.settings.model)
        for label, steerer in (named for m in methods for named in zip(m.labels, m.steerers, strict=True)):
            check_values(steerer, f"{label}:", known, name)

    @cached_property
    def batch_size(self) -> int:
        """Most prompts at once."""
        asked = self.options.batch_size
        if asked != "auto":
            return asked
        longest = (self.settings.max_prompt_tokens or MOST) + self.settings.decoding.max_new_tokens
        return automatic(self.lm.model, min(longest, self.lm.context_length))

    @cached_property
    def max_prompt_tokens(self) -> int:
        """Tokens above which a prompt is left out."""
        return prompt_limit(self.lm, self.settings.decoding.max_new_tokens, self.settings.max_prompt_tokens)

    @cached_property
    def train(self) -> list[Example]:
        """The training examples that the model can take. Raises SteerbenchError if there is none."""
        return self._fitting("training", self.data.train, self.settings.n_train)

    def context(self, seed: int) -> FitContext:
        """Return what a method may learn from."""
        return FitContext(
            lm=self.lm,
            examples=TrainSplit(lambda: self.train),
            reward=self.reward,
            seed=seed,
            decoding=self.settings.decoding,
            batch_size=self.batch_size,
            engine=self.engine,
            progress=self.options.progress,
            _shared=self.shared,
            _study=StudyFolder(self.options.shared) if self.options.shared else None,
        )

    def _reward_model(self, name: str) -> KeptReward:
        return KeptReward.load(name, device=self.device, batch_size=self.batch_size)

    def _fitting(self, split: str, examples: Sequence[Example], wanted: int) -> list[Example]:
        limit = self.max_prompt_tokens
        found = fitting(self.lm, examples, wanted, limit, self.counts)
        if wanted and not found:
            longer = "raise --max-prompt-tokens, " if self.settings.max_prompt_tokens else ""
            raise SteerbenchError(
                f"no {split} prompt of {self.settings.task} has at most {limit} tokens; {longer}lower "
                f"--max-new-tokens, or take a model with a longer context."
            )
        return found


class Bench(Setup):
    """A protocol, loaded: what methods are fitted on, and what they are measured with."""

    def __init__(self, protocol: Protocol, options: Options) -> None:
        super().__init__(protocol, options)
        self.protocol = protocol.complete
        """With nothing left open."""
        part = protocol.capability_part
        self._checked: Capability | None = Capability(part, build_task(part)) if part else None

    @cached_property
    def validation(self) -> list[Example]:
        """For tuning alone; empty without it."""
        wanted = self.protocol.n_validation if self.protocol.tuning_budget else 0
        return self._fitting("validation", self.data.validation, wanted)

    @cached_property
    def test(self) -> list[Example]:
        """The test examples, each once."""
        found = self._fitting("test", self.data.test, self.protocol.n_examples)
        if missing := self.protocol.n_examples - len(found):
            self.counts["test prompts asked for that are not there"] = missing
        return found

    @cached_property
    def capability(self) -> list[Example]:
        """The questions of the capability check; empty where none is asked for."""
        if self._checked is None:
            return []
        p, counts = self.protocol, Counter[str]()
        data = self._checked.load(p.capability_data, p.data)
        counts.update(data.skipped)
        found = fitting(self.lm, data.test, p.n_capability, self.max_prompt_tokens, counts)
        self.counts.update({f"of {self._checked.name}: {reason}": n for reason, n in counts.items()})
        self._checked.check(found)
        return found

    @cached_property
    def held_out(self) -> Reward | None:
        """The reward that only scores. Raises SteerbenchError if it is the guide."""
        if not self.protocol.held_out_reward:
            return None
        judge = self._reward_model(self.protocol.held_out_reward)
        if judge.revision == self.reward.revision:
            raise SteerbenchError(
                f"the held-out reward, {judge.name}, is the guiding reward itself; give another --held-out-reward."
            )
        return judge

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The sentence encoder of the coherence metric."""
        name, size = str(self.protocol.encoder), self.batch_size
        try:
            return SentenceEncoder.load(name, device=self.device, batch_size=size)
        except SteerbenchError as error:
            if name != DEFAULT_ENCODER:
                raise
            raise SteerbenchError(
                f"{error} It is the sentence encoder that coherence is measured with where --encoder names no other."
            ) from error

    @property
    def rewards(self) -> dict[str, Reward]:
        """The rewards that score, by column: the guide and the held-out one, as far as they are given."""
        found = {"reward": self.reward if self.settings.reward_model else None, "held_out_reward": self.held_out}
        return {column: reward for column, reward in found.items() if reward is not None}

    def check_rewards(self) -> None:
        """Raise SteerbenchError if a reward cannot read a prompt, or was trained on one to be measured."""
        prompts = [e.prompt for examples in (self.train, self.validation, self.test) for e in examples]
        for reward in self.rewards.values():
            reward.check_prompts(prompts)
            self._check_unseen(reward)

    def _check_unseen(self, reward: Reward) -> None:
        """Raise SteerbenchError if a reward was trained on prompts that are measured on, and says so."""
        measured = [*self.validation, *self.test]
        if reward.trained_on and (seen := reward.trained_on.seen(measured)):
            raise SteerbenchError(
                f"reward model {reward.name!r} was trained on {len(seen)} of the {len(measured)} test and validation "
                f"prompts, or on dialogues that begin alike; use another reward, or other prompts."
            )

    @property
    def test_examples(self) -> list[Example]:
        """The test examples as often as there are samples: the first sample of all, then the second."""
        return self.test * self.protocol.n_samples

    def context(self, seed: int) -> FitContext:
        """Return what a method may learn from under the protocol."""
        queries = [e.prompt for e in self.test] if self.protocol.transductive else None
        return replace(super().context(seed), test_queries=queries)

    @cached_property
    def key(self) -> Key:
        """What the protocol came to: equal keys, comparable scores. Device, batch size and paths are not in it."""
        p, settings = self.protocol, changed_settings(self.task)
        rewards = {column: asset(reward.name, reward.revision) for column, reward in self.rewards.items()}
        return {
            "task": self._at_home(self.task_name),
            **({"task_settings": settings} if settings else {}),
            "task_version": self.task.version,
            "data": self.data.revision,
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
            **({"engine": p.engine} if p.engine != TRANSFORMERS else {}),
            **self.lm.format.key,
            **asdict(p.decoding),
            "reward_model": rewards.get("reward"),
            "held_out_reward": rewards.get("held_out_reward"),
            **({"reward_prompt_date": TEMPLATE_DATE} if any(r.shows_date for r in self.rewards.values()) else {}),
            "encoder": asset(self.encoder.name, self.encoder.revision),
            "tuning_budget": p.tuning_budget,
            "objective": (p.objective if p.match_kl is None else "kl") if p.tuning_budget else None,
            "match_kl": p.match_kl,
            **({"sampler": p.sampler} if p.sampler != COARSE else {}),
            **({"transductive": True} if p.transductive else {}),
            **({"capability": self._checked.key(self.capability)} if self._checked else {}),
            "seeds": list(p.seeds),
            "steerbench": ".".join(__version__.split(".")[:2]),
        }

    @property
    def labels(self) -> dict[str, str]:
        """Readable names for tables; that of the task says its settings, and if anything in it is of a testbed."""
        rewards = {column: reward.name for column, reward in self.rewards.items()}
        return {
            "task": self._at_home(label_of(self.task_name, self.task)),
            "model": self.lm.name,
            "reward_model": rewards.get("reward", ""),
            "held_out_reward": rewards.get("held_out_reward", ""),
            "encoder": self.encoder.name,
        }

    @property
    def batch_sizes(self) -> dict[str, Any]:
        """How much was run at once, as asked for, and which models took one text at a time nevertheless."""
        found = {"model": self.lm.largest_batch, "encoder": self.encoder.largest_batch}
        found |= {column: reward.largest_batch for column, reward in self.rewards.items()}
        alone = [part for part, largest in found.items() if largest]
        return {"batch_size": self.batch_size, **({"one_at_a_time": alone} if alone else {})}

    @property
    def has_gold(self) -> bool:
        """Whether the data are a testbed's, so that every response has a true score."""
        data = self.protocol.data
        home = testbed.around(data) if data else None
        return home is not None and data is not None and data.expanduser().resolve().is_relative_to(home.data)

    def _at_home(self, task: str) -> str:
        """Put the testbed's name before that of a task if anything in it belongs to one."""
        p = self.protocol
        paths = [Path(name) for name in (p.model, p.reward_model, p.held_out_reward, p.encoder, p.data) if name]
        return next((f"{home.name}-{task}" for home in map(testbed.around, paths) if home), task)


def load_bench(
    protocol: Protocol, options: Options, lm: LanguageModel | None = None, methods: Sequence[Method] = ()
) -> Bench:
    """Load what a protocol names. Cheap things first, so that a mistake in them is told before a model is read.

    Raises SteerbenchError also where a setting of the methods does not fit the model.
    """
    if lm is None and protocol.reward_model is None and not testbed.named(protocol.model):
        configured(protocol.model)  # a model that is nowhere needs no reward
    bench = Bench(protocol, options)
    p = bench.protocol
    if lm is not None and p.engine != TRANSFORMERS:
        raise SteerbenchError(f"engine {p.engine} loads a model by its name; give that, and leave lm out.")
    if lm is not None:
        bench.lm, bench.device = lm, lm.device if options.device == "auto" else bench.device
        lm.largest_batch  # noqa: B018 - tells now what would be told in the middle of the run
    for name in (None if lm else p.model, p.reward_model, p.held_out_reward, p.encoder):
        if name is not None:
            check_path(name)
    bench.check_settings(methods)
    steps = (["data"], ["lm", "train", "validation", "test", "capability"], ["reward", "held_out"], ["encoder"])
    with options.progress(f"{protocol.task}: load", len(steps)) as advance:
        for step in steps:
            for part in step:
                getattr(bench, part)
            advance(1)
    bench.check_rewards()
    return bench
