"""The main path: pairs -> states -> block and penalty on validation -> [last blocks] -> figures -> folder."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steerbench.data.splits import folder_of, half_of, load_data
from steerbench.data.task import Example, TaskData
from steerbench.errors import SteerbenchError
from steerbench.models.machine import dtype_of, environment, fast_dtype, fix_threads, pick_device
from steerbench.models.pooled_block import PooledForm
from steerbench.plugins.spec import build_task, parse_tasks
from steerbench.progress import Progress, silent
from steerbench.reward_training.backbone import Backbone
from steerbench.reward_training.block_finetuning import Tuning, finetune, tuned_scores
from steerbench.reward_training.bradley_terry import PENALTIES, Choice, Head, Pairs, choose, fit_head
from steerbench.reward_training.damaged_replies import N_PROBED, PROBES, damaged
from steerbench.reward_training.evidence import evidence, probe_figures
from steerbench.reward_training.kept_states import complete
from steerbench.reward_training.reward_folder import prepare, tell, write_reward
from steerbench.reward_training.scenes import Scene, SceneTokens
from steerbench.version import __version__


@dataclass(frozen=True, kw_only=True)
class RewardTraining:
    """What a user chooses."""

    backbone: str
    """Folder, or `org/name[@revision]` of the Hub: an encoder or a decoder."""
    task: str = "hh_rlhf"
    data: Path | None = None
    """File or folder in the task's original schema; None: the Hub's pinned revision."""
    block: int | None = None
    """Whose output is read, counted from 0; None: chosen on validation."""
    finetune: int = 0
    """How many of the last blocks, up to `block`, are trained too."""
    length_neutral: bool = False
    """Whether log-length is a covariate of the fit, which scores do without."""
    max_tokens: int = 256
    """Pairs are left out where dialogue and reply are longer."""
    half: int | None = None
    """Which half of the train split is learned from, 0 or 1, by prompt; None: all of it."""
    n_train: int | None = None
    n_examples: int | None = None
    """Most pairs of the train and of the test split; None: all."""
    states: Path = Path("runs/states")
    """Where states are kept."""
    device: str = "auto"
    dtype: str = "auto"
    """Of the backbone: bfloat16 where the processor multiplies in it, else float32."""
    batch_size: int = 16
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.half not in (None, 0, 1):
            raise SteerbenchError(f"half is {self.half}; give 0 or 1, or leave it out for all of the train split.")


class Split(NamedTuple):
    """Pairs of one split, with their tokens."""

    examples: list[Example]
    tokens: list[SceneTokens]

    @property
    def lengths(self) -> Any:
        """Tokens of the two replies, (pairs, 2)."""
        return np.array([scene.lengths for scene in self.tokens], float)


def train_reward(settings: RewardTraining, out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Train a reward and write its folder, which loads as `--reward-model`; return the manifest.

    Raises SteerbenchError where there are no pairs to learn from, or the folder holds something else.
    """
    prepare(out)
    course = _Course(settings, progress)
    course.write(out)
    manifest = course.finetuned(out) if settings.finetune else course.frozen
    tell(out, manifest)
    return manifest


class _Course:
    """One training; each thing is made when it is first asked for."""

    def __init__(self, settings: RewardTraining, progress: Progress) -> None:
        self.settings, self.progress = settings, progress
        device = pick_device(settings.device)
        if settings.threads is not None:
            fix_threads(settings.threads)
        self.backbone = Backbone(
            settings.backbone,
            device=device,
            dtype=dtype_of(settings.dtype) or fast_dtype(device),
            batch_size=settings.batch_size,
            threads=settings.threads is None,
        )
        self.counts: Counter[str] = Counter()
        (self.part,) = parse_tasks(settings.task)
        self.task = build_task(self.part)

    @cached_property
    def data(self) -> TaskData:
        """The task's examples."""
        found = load_data(self.task, folder_of(self.part.name, self.settings.data))
        self.counts.update(found.skipped)
        return found

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The pairs that fit, of each split."""
        wanted = {"train": self.settings.n_train, "validation": None, "test": self.settings.n_examples}
        return {name: self._fitting(name, n) for name, n in wanted.items()}

    def _fitting(self, name: str, wanted: int | None) -> Split:
        examples: Sequence[Example] = getattr(self.data, name)
        if name == "train" and self.settings.half is not None:
            examples = half_of(examples, self.settings.half)
        most = min(self.settings.max_tokens, self.backbone.limit or self.settings.max_tokens)
        kept = Split([], [])
        with self.progress(f"tokenize {name} pairs", len(examples)) as advance:
            for example in examples:
                if wanted is not None and len(kept.examples) == wanted:
                    break
                tokens = self.backbone.tokens(Scene(example.prompt, (example.chosen, example.rejected)))
                if tokens.longest <= most:
                    kept.examples.append(example)
                    kept.tokens.append(tokens)
                else:
                    self.counts[f"pair longer than {most} tokens"] += 1
                advance(1)
        if len(kept.examples) < 2:
            of_half = " of that half" if name == "train" and self.settings.half is not None else ""
            raise SteerbenchError(
                f"fewer than two {name} pairs{of_half} have at most {most} tokens; raise --max-tokens, or give more "
                f"data."
            )
        return kept

    @cached_property
    def blocks(self) -> list[int]:
        """The blocks that are tried. Raises SteerbenchError for one that is not there."""
        block, n = self.settings.block, self.backbone.n_blocks
        if block is not None and not 0 <= block < n:
            raise SteerbenchError(f"block {block} of {self.backbone.source.name!r} is outside 0..{n - 1}.")
        blocks = self.backbone.candidates if block is None else [block]
        if self.settings.finetune > min(blocks) + 1:
            raise SteerbenchError(f"--finetune {self.settings.finetune} is more than the blocks up to {min(blocks)}.")
        return blocks

    @property
    def read(self) -> list[int]:
        """The blocks whose states are kept: for one of the usual ones all of them, so that trainings share files."""
        usual = self.backbone.candidates
        return usual if set(self.blocks) <= set(usual) else self.blocks

    def _states(self, scenes: Sequence[SceneTokens]) -> Any:
        """Return (scenes, replies, blocks, width) float64."""
        kept = self.backbone.kept(self.settings.states, self.read)
        found = complete(kept, lambda: self.backbone.reader(self.read), scenes, self.progress)
        columns = [self.read.index(block) for block in self.blocks]
        return np.stack([one[:, columns].double().numpy() for one in found])

    @cached_property
    def pairs(self) -> dict[str, dict[int, Pairs]]:
        """The pairs of each split as numbers, at each block."""
        scenes = [scene for split in self.splits.values() for scene in split.tokens]
        states, found, start = self._states(scenes), {}, 0
        for name, split in self.splits.items():
            own = states[start : start + len(split.tokens)]
            found[name] = {block: Pairs(own[:, :, i], split.lengths) for i, block in enumerate(self.blocks)}
            start += len(split.tokens)
        return found

    @cached_property
    def choice(self) -> Choice:
        """Block and penalty."""
        with self.progress("choose block and penalty", 1) as advance:
            train, validation = self.pairs["train"], self.pairs["validation"]
            found = choose(train, validation, length_neutral=self.settings.length_neutral, penalties=PENALTIES)
            advance(1)
        return found

    @cached_property
    def head(self) -> Head:
        """The head on the train pairs."""
        chosen = self.choice
        return fit_head(self.pairs["train"][chosen.block], chosen.penalty, length_neutral=self.settings.length_neutral)

    @property
    def dtype(self) -> str:
        """Of the states."""
        return str(self.backbone.dtype).removeprefix("torch.")

    def write(self, out: Path) -> None:
        """Write the frozen reward."""
        form = PooledForm(self.backbone.seen_from(out), self.backbone.revision, self.choice.block, self.dtype)
        write_reward(out, form, self.head, self.splits["train"].examples)

    @property
    def probes(self) -> list[SceneTokens]:
        """Held-out prompts with preferred and damaged replies."""
        examples = self.splits["test"].examples[:N_PROBED]
        return [self.backbone.tokens(damaged(example)) for example in examples]

    @property
    def frozen(self) -> dict[str, Any]:
        """The manifest of a head on frozen states."""
        held_out = self.pairs["test"][self.choice.block]
        at_block = self._states(self.probes)[:, :, self.blocks.index(self.choice.block)]
        return self._manifest(self.head.margins(held_out), self.head.scores(at_block), {})

    def finetuned(self, out: Path) -> dict[str, Any]:
        """Train the last blocks of the reward in a folder too, and return the manifest."""
        train, validation, test = (self.splits[name].tokens for name in ("train", "validation", "test"))
        device, size = self.backbone.device, self.settings.batch_size
        tuning = Tuning(device, size, self.head.length, self.progress)
        told = finetune(out, self.settings.finetune, train, validation, tuning)
        score = tuned_scores(out, device, size, self.progress)
        scores = score(test)
        return self._manifest(scores[:, 0] - scores[:, 1], score(self.probes), {"finetuning": told})

    def _manifest(self, margins: Any, probed: Any, told: Mapping[str, Any]) -> dict[str, Any]:
        examples, log_lengths = self.splits["test"].examples, self.pairs["test"][self.choice.block].log_lengths
        return {
            "steerbench": __version__,
            "task": {"name": self.settings.task, "version": self.task.version, "data": self.data.revision},
            "backbone": {"name": self.backbone.source.name, "revision": self.backbone.revision},
            "dtype": self.dtype,
            "block": self.choice.block,
            "pooling": "mean over the reply's tokens",
            "penalty": self.choice.penalty,
            "length neutral": self.settings.length_neutral,
            "length slope": round(self.head.length, 4),
            "max tokens": self.settings.max_tokens,
            **({} if self.settings.half is None else {"half": self.settings.half}),
            "pairs": {name: len(split.examples) for name, split in self.splits.items()},
            "left out": dict(sorted(self.counts.items())),
            "tried on validation": self.choice.tried,
            **told,
            "held out": evidence(examples, margins, log_lengths),
            "probes": probe_figures(probed, PROBES),
            "machine": environment(self.backbone.device),
        }
