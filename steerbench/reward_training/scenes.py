"""Scenes: a dialogue with several replies, read together, so that the dialogue is read once for all of them."""

import hashlib
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steerbench.data.dialogue import Dialogue
from steerbench.models.pooled_block import BlockStates, pooling_weights
from steerbench.models.reward_text import REPLY, RewardText


class Scene(NamedTuple):
    """A dialogue and its replies."""

    dialogue: Dialogue
    replies: tuple[str, ...]


class SceneTokens(NamedTuple):
    """The replies of a scene, each with the dialogue before it, as token ids and marks."""

    key: str
    """Hash of the texts."""
    rows: list[list[int]]
    marks: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each reply."""
        return [marks.count(REPLY) for marks in self.marks]

    @property
    def longest(self) -> int:
        """Tokens of the dialogue with its longest reply."""
        return max(map(len, self.rows))


def tokens_of(writer: RewardText, scene: Scene) -> SceneTokens:
    """Return the tokens of a scene, whole."""
    dialogues = [scene.dialogue] * len(scene.replies)
    texts = "\0".join(map(writer.text, dialogues, scene.replies))
    found = writer.marked(dialogues, scene.replies, None)
    return SceneTokens(hashlib.sha256(texts.encode()).hexdigest()[:32], found.rows, found.marks)


class _Joined(NamedTuple):
    """One row of columns: what all rows of a scene begin with, and then the rest of each."""

    ids: list[int]
    positions: list[int]
    parts: list[int]
    """0 for what is shared, 1 + the number of its reply for the rest."""
    columns: list[list[int]]
    """Where the tokens of each reply's row stand."""


def _joined(scene: SceneTokens) -> _Joined:
    first = scene.rows[0]
    others = scene.rows[1:]
    most = min(map(len, scene.rows)) - 1  # each keeps a token of its own
    shared = sum(1 for _ in takewhile(lambda i: all(row[i] == first[i] for row in others), range(most)))
    joined = _Joined(first[:shared], list(range(shared)), [0] * shared, [])
    for number, row in enumerate(scene.rows):
        rest = row[shared:]
        joined.columns.append([*range(shared), *range(len(joined.ids), len(joined.ids) + len(rest))])
        joined.ids.extend(rest)
        joined.positions.extend(range(shared, len(row)))
        joined.parts.extend([number + 1] * len(rest))
    return joined


def joined_length(scene: SceneTokens) -> int:
    """Return how many columns the scene takes where its dialogue is read once."""
    return len(_joined(scene).ids)


def read_joined(states: BlockStates, scenes: Sequence[SceneTokens], pad_id: int) -> Tensor:
    """Return (scenes, replies, blocks, width), from one pass over dialogues with all their replies.

    A token sees what all replies share and what stands before it in its own reply. For causal models alone, and of
    these not for all: `shares_prompts` tries it.
    """
    device = states.model.device
    rows = [_joined(scene) for scene in scenes]
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [pad_id] * (width - len(row.ids)) for row in rows], device=device)
    positions = torch.tensor([row.positions + [0] * (width - len(row.ids)) for row in rows], device=device)
    parts = torch.tensor([row.parts + [-1] * (width - len(row.ids)) for row in rows], device=device)
    seen = (parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None])
    seen = seen & torch.ones(width, width, dtype=torch.bool, device=device).tril()
    lowest = torch.finfo(states.model.dtype).min
    mask = torch.zeros(seen.shape, dtype=states.model.dtype, device=device).masked_fill(~seen, lowest)[:, None]
    weights = torch.zeros(len(rows), len(scenes[0].rows), width, device=device)
    for i, (row, scene) in enumerate(zip(rows, scenes, strict=True)):
        for number, (columns, marks) in enumerate(zip(row.columns, scene.marks, strict=True)):
            weights[i, number, columns] = pooling_weights(torch.tensor([marks], device=device))[0]
    return states.pooled(weights, input_ids=ids, attention_mask=mask, position_ids=positions)


def read_apart(states: BlockStates, scenes: Sequence[SceneTokens], pad_id: int) -> Tensor:
    """Return what `read_joined` does, from passes in which each reply has a row of its own."""
    found = []
    for number in range(len(scenes[0].rows)):
        rows = [scene.rows[number] for scene in scenes]
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], device=states.model.device)
        marks = [scene.marks[number] + [0] * (width - len(row)) for scene, row in zip(scenes, rows, strict=True)]
        found.append(states(ids, torch.tensor(marks, device=states.model.device)))
    return torch.stack(found, dim=1)


@torch.no_grad()
def shares_prompts(states: BlockStates, scenes: Sequence[SceneTokens], pad_id: int) -> bool:
    """Tell whether a model gives the same states where the dialogue is read once, by trying it on some scenes."""
    try:
        together: Any = read_joined(states, scenes, pad_id)
    except Exception:  # some models take no mask of this shape, or no positions, and each says it in its own way
        return False
    apart = torch.cat([read_apart(states, [scene], pad_id) for scene in scenes])
    gap = (together - apart).norm(dim=-1) / apart.norm(dim=-1).clamp_min(1e-6)
    return bool(gap.max() < (1e-3 if states.model.dtype == torch.float32 else 5e-2))
