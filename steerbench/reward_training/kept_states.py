"""States of scenes, computed once and kept on disk: a training that was interrupted, or another one, finds them."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from steerbench.errors import SteerbenchError
from steerbench.files import write_whole
from steerbench.models.batching import halving
from steerbench.models.pooled_block import BlockStates
from steerbench.progress import Progress, silent
from steerbench.reward_training.scenes import SceneTokens, read_apart, read_joined, shares_prompts

_SHARD = 64
"""Scenes of a file: what an interruption can cost."""
_SORTED = 8
"""Files whose scenes are sorted by length together, so that a batch has little padding."""


class Kept(NamedTuple):
    """Where the states of one model lie: a folder, which is only added to."""

    folder: Path

    def found(self) -> dict[str, tuple[Path, int]]:
        """Return the key of each scene that is there, with its file and row. Broken files are as if not there."""
        known: dict[str, tuple[Path, int]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    keys = json.loads(file.metadata()["keys"])
            except (SafetensorError, OSError, ValueError, KeyError, TypeError):
                continue
            known |= {key: (path, row) for row, key in enumerate(keys)}
        return known

    def add(self, keys: Sequence[str], states: Tensor) -> None:
        """Write a file of scenes. Raises SteerbenchError if it cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            content = save({"states": states.contiguous()}, {"keys": json.dumps(list(keys))})
            write_whole(self.folder / f"{keys[0]}.safetensors", content)
        except OSError as error:
            raise SteerbenchError(f"cannot keep states in {self.folder}: {error.strerror}; choose --states.") from error

    def read(self, keys: Sequence[str]) -> list[Tensor]:
        """Return the states of scenes that are there, each (replies, blocks, width)."""
        known = self.found()
        files = {path: _content(path) for path in {known[key][0] for key in keys}}
        return [files[known[key][0]][known[key][1]] for key in keys]


def _content(path: Path) -> Tensor:
    with safe_open(path, framework="pt") as file:
        states: Tensor = file.get_tensor("states")
        return states


class Reader(NamedTuple):
    """What reads scenes."""

    states: BlockStates
    pad_id: int
    batch_size: int

    @torch.inference_mode()
    def read(self, scenes: Sequence[SceneTokens], *, joined: bool) -> Tensor:
        """Return (scenes, replies, blocks, width) float32 on the CPU; the scenes have equally many replies."""
        way = read_joined if joined else read_apart

        def work(rows: list[int]) -> Tensor:
            return way(self.states, [scenes[i] for i in rows], self.pad_id).float().cpu()

        every = list(range(len(scenes)))
        batches = (every[start : start + self.batch_size] for start in range(0, len(every), self.batch_size))
        return torch.cat([found for _, found in halving(batches, work)])


def complete(
    kept: Kept, reader: Callable[[], Reader], scenes: Sequence[SceneTokens], progress: Progress = silent
) -> list[Tensor]:
    """Return the states of scenes, (replies, blocks, width) each; those that are not there are computed and added."""
    known = kept.found()
    missing = list({scene.key: scene for scene in scenes if scene.key not in known}.values())
    with progress("states of replies", len(scenes)) as advance:
        advance(len(scenes) - len(missing))
        if missing:
            read = reader()
            joined = shares_prompts(read.states, sorted(missing, key=lambda s: s.longest)[:2], read.pad_id)
            for shard in _shards(missing):
                kept.add([scene.key for scene in shard], read.read(shard, joined=joined))
                advance(len(shard))
    return kept.read([scene.key for scene in scenes])


def _shards(scenes: Sequence[SceneTokens]) -> Iterator[list[SceneTokens]]:
    """Yield scenes with equally many replies, longest first among neighbours."""
    for n_replies in sorted({len(scene.rows) for scene in scenes}):
        alike = [scene for scene in scenes if len(scene.rows) == n_replies]
        for start in range(0, len(alike), _SORTED * _SHARD):
            ordered = sorted(alike[start : start + _SORTED * _SHARD], key=lambda s: -s.longest)
            yield from (ordered[i : i + _SHARD] for i in range(0, len(ordered), _SHARD))
