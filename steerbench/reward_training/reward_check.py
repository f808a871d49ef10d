"""How good a reward that is there already is on a task's held-out pairs, and how far two of them agree."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steerbench.data.splits import folder_of, load_data
from steerbench.data.task import Example
from steerbench.errors import SteerbenchError
from steerbench.files import read_object
from steerbench.models.machine import fix_threads, pick_device
from steerbench.models.reward import RewardModel
from steerbench.plugins.spec import build_task, parse_tasks
from steerbench.progress import Progress, silent
from steerbench.reward_training.damaged_replies import N_PROBED, PROBES, damaged
from steerbench.reward_training.evidence import evidence, on_one_side, probe_figures

_SIDES = "chosen", "rejected"


@dataclass(frozen=True, kw_only=True)
class RewardCheck:
    """What a user chooses."""

    rewards: Sequence[str]
    """Folders or Hub names."""
    task: str = "hh_rlhf"
    data: Path | None = None
    max_tokens: int = 256
    """Pairs are left out where the first reward reads more for dialogue and reply."""
    n_examples: int | None = None
    """Most pairs of the test split; None: all."""
    device: str = "auto"
    batch_size: int = 16
    threads: int | None = None


def check_rewards(settings: RewardCheck, progress: Progress = silent) -> dict[str, Any]:
    """Return for each reward its figures on the test split, and how two of them agree.

    Pairs whose prompts a reward was trained on are left out, and counted. Raises SteerbenchError where fewer than two
    are left.
    """
    device = pick_device(settings.device)
    if settings.threads is not None:
        fix_threads(settings.threads)
    rewards = [RewardModel.load(name, device=device, batch_size=settings.batch_size) for name in settings.rewards]
    left_out: Counter[str] = Counter()
    examples = _unseen(settings, rewards, left_out)
    log_lengths = _log_lengths(rewards[0], examples)
    margins = [_margins(reward, examples, progress) for reward in rewards]
    return {
        "task": settings.task,
        "left out": dict(left_out),
        "rewards": {
            name: {
                "length neutral": _length_neutral(name),
                "held out": evidence(examples, margin, log_lengths),
                "probes": _probes(reward, examples, progress),
            }
            for name, reward, margin in zip(settings.rewards, rewards, margins, strict=True)
        },
        "agreement": _agreement(examples, *margins) if len(margins) == 2 else None,
    }


def _unseen(settings: RewardCheck, rewards: Sequence[RewardModel], left_out: Counter[str]) -> list[Example]:
    """Return the test pairs on which all rewards can be checked."""
    (part,) = parse_tasks(settings.task)
    pairs = [e for e in load_data(build_task(part), folder_of(part.name, settings.data)).test if e.rejected]
    known = {e.id for reward in rewards if reward.trained_on for e in reward.trained_on.seen(pairs)}
    unseen = [e for e in pairs if e.id not in known]
    longest = np.max([_lengths(rewards[0], unseen, side) for side in _SIDES], axis=0)
    found = [e for e, n in zip(unseen, longest, strict=True) if n <= settings.max_tokens]
    left_out["prompt that one of them was trained on"] = len(known)
    left_out[f"pair longer than {settings.max_tokens} tokens"] = len(unseen) - len(found)
    if len(found := found[: settings.n_examples]) < 2:
        raise SteerbenchError(
            f"fewer than two test pairs of {settings.task} are left to check on; raise --max-tokens, or give more data."
        )
    return found


def _length_neutral(name: str) -> bool:
    """Tell whether a reward of `steerbench reward train` may not go by length, as its manifest says."""
    manifest = Path(name).expanduser() / "manifest.json"
    return manifest.is_file() and read_object(manifest).get("length neutral") is True


def _lengths(reward: RewardModel, examples: Sequence[Example], side: str) -> Any:
    """Return how many tokens a reward reads for dialogue and reply, (pairs,); for the dialogue alone with side ""."""
    replies = [getattr(e, side) if side else "" for e in examples]
    return np.array([len(row) for row in reward.tokens([e.prompt for e in examples], replies)])


def _log_lengths(reward: RewardModel, examples: Sequence[Example]) -> Any:
    """Return the log of the tokens of the chosen reply over those of the other, (pairs,)."""
    alone = _lengths(reward, examples, "")
    chosen, rejected = (np.log1p((_lengths(reward, examples, side) - alone).clip(0)) for side in _SIDES)
    return chosen - rejected


def _margins(reward: RewardModel, examples: Sequence[Example], progress: Progress) -> Any:
    """Return the scores of the chosen replies less those of the others, (pairs,) float64."""
    prompts = [e.prompt for e in examples]
    replies = [e.chosen for e in examples] + [e.rejected for e in examples]
    scores = reward.score(prompts * 2, replies, progress).double().numpy().reshape(2, -1)
    return scores[0] - scores[1]


def _probes(reward: RewardModel, examples: Sequence[Example], progress: Progress) -> dict[str, dict[str, Any]]:
    scenes = [damaged(example) for example in examples[:N_PROBED]]
    prompts = [scene.dialogue for scene in scenes for _ in scene.replies]
    scores = reward.score(prompts, [reply for scene in scenes for reply in scene.replies], progress)
    return probe_figures(scores.double().numpy().reshape(len(scenes), -1), PROBES)


def _agreement(examples: Sequence[Example], ones: Any, others: Any) -> dict[str, Any]:
    """Return how often two rewards prefer the same reply, with an interval, and the rank correlation of margins."""
    correlation = pd.Series(ones).rank().corr(pd.Series(others).rank())
    return {"same side": on_one_side(examples, ones, others), "rank correlation": round(float(correlation), 4)}
