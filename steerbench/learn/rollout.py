"""Rollouts, and a file of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steerbench.data.dialogue import Dialogue, Turn
from steerbench.learn.study_folder import write_file
from steerbench.models.language_model import Tokens
from steerbench.models.response import Response

_FILE = "rollouts.json"


@dataclass(frozen=True)
class Rollout:
    """A response of the unsteered model to a training prompt, with its reward."""

    prompt: Dialogue
    """Turns; `prompt[-1].text` is what the user said last."""
    response: Response
    """What the model said: `response.text`, and `response.ids`, which is empty where it said nothing."""
    tokens: Tokens
    """Prompt and response as ids, which `context.activations` and `context.states` take."""
    reward: float
    """By the guiding reward, in its own units; higher is better."""
    group: str
    """Of the example: rollouts of one group are alike, and belong on the same side of a split."""


def write_rollouts(folder: Path, rollouts: Sequence[Rollout]) -> list[str]:
    """Write rollouts into a folder, and return the names of the files."""
    write_file(folder, _FILE, json.dumps([asdict(one) for one in rollouts], allow_nan=False))
    return [_FILE]


def read_rollouts(folder: Path) -> list[Rollout]:
    """Return the rollouts that `write_rollouts` wrote."""
    return [_rollout(values) for values in json.loads((folder / _FILE).read_text(encoding="utf-8"))]


def _rollout(values: dict[str, Any]) -> Rollout:
    response = values["response"]
    lists = {name: tuple(response[name]) for name in ("ids", "draws")}
    return Rollout(
        prompt=tuple(Turn(*turn) for turn in values["prompt"]),
        response=Response(**{**response, **lists}),
        tokens=Tokens(*map(tuple, values["tokens"])),
        reward=values["reward"],
        group=values["group"],
    )
