"""The model whose states a reward reads, and which of its blocks are tried."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoModel

from steerbench.models.batching import check_ids, padding_id, position_limit
from steerbench.models.checkpoint import Source, find, load_model, load_tokenizer
from steerbench.models.machine import use_threads
from steerbench.models.pooled_block import BlockStates, check_complete
from steerbench.models.reward_text import RewardText
from steerbench.models.sites import Anatomy
from steerbench.records.identity import fingerprint
from steerbench.reward_training.kept_states import Kept, Reader
from steerbench.reward_training.scenes import Scene, SceneTokens, tokens_of

_DEPTHS = (3 / 8, 1 / 2, 5 / 8)
"""Where blocks are tried: later ones cost more, and those of the end, which serve the next token, were no better."""
_FORMAT = 1
"""Raised whenever kept states would be others."""


class Backbone:
    """A model of the Hub or a folder, loaded when states are missing."""

    def __init__(self, name: str, *, device: torch.device, dtype: torch.dtype, batch_size: int, threads: bool) -> None:
        """Find it; `threads` lets it set as many CPU threads as suit its size."""
        self.source: Source = find(name)
        self._path = Path(name).expanduser()
        self.device, self.dtype, self.batch_size = device, dtype, batch_size
        self._threads = threads
        self._states: BlockStates | None = None
        self.tokenizer = load_tokenizer(self.source)
        self.writer = RewardText(self.tokenizer, self.source.name)

    @property
    def revision(self) -> str:
        """Commit or hash."""
        return self.source.revision

    def seen_from(self, folder: Path) -> str:
        """Return how a reward in a folder names it: relative where both are below here, and can be moved together."""
        if not self.is_local:
            return f"{self.source.name}@{self.revision}"
        path, here = self._path.absolute(), Path.cwd()
        together = path.is_relative_to(here) and folder.absolute().is_relative_to(here)
        return f"./{os.path.relpath(path, folder)}" if together else str(path)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return self.revision.startswith("sha256:")

    @cached_property
    def model(self) -> torch.nn.Module:
        """The whole model, frozen."""
        model, missing = load_model(AutoModel, self.source, self.dtype)
        check_complete(self.source, missing)
        if self._threads:
            use_threads(sum(p.numel() for p in model.parameters()), self.device)
        found: torch.nn.Module = model.to(self.device)
        return found

    @cached_property
    def n_blocks(self) -> int:
        """How many blocks the whole model has."""
        return len(Anatomy(self.model).blocks)

    @property
    def candidates(self) -> list[int]:
        """The blocks that are tried."""
        return sorted({int(depth * self.n_blocks) for depth in _DEPTHS})

    @property
    def limit(self) -> int | None:
        """Most tokens of a text."""
        return position_limit(self.model, self.tokenizer)

    def tokens(self, scene: Scene) -> SceneTokens:
        """Return the tokens of a scene. Raises SteerbenchError for one that the model has no embedding of."""
        found = tokens_of(self.writer, scene)
        check_ids(found.rows, self.tokenizer, self.model, self.source.name)
        return found

    def kept(self, folder: Path, blocks: Sequence[int]) -> Kept:
        """Return where its states at some blocks lie below a folder."""
        about = {"backbone": self.revision, "dtype": str(self.dtype), "blocks": list(blocks), "format": _FORMAT}
        return Kept(folder / fingerprint(about)[:16])

    def reader(self, blocks: Sequence[int]) -> Reader:
        """Return what reads states at blocks: the first ones asked for, behind the last of which the model is cut."""
        if self._states is None:
            _ = self.n_blocks  # which a cut model no longer tells
            self._states = BlockStates(self.model, blocks, self.source.name)
        if self._states.blocks != tuple(blocks):
            raise ValueError(f"this backbone reads blocks {self._states.blocks}, and not {tuple(blocks)}")
        return Reader(self._states, padding_id(self.tokenizer, self.model), self.batch_size)
