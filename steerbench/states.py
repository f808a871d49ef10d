"""States of many sequences, kept on disk in shards: memory does not grow with their number."""

import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from steerbench.errors import SteerbenchError

SHARD_BYTES = 64 * 2**20


class StateBatch(NamedTuple):
    """Some sequences: their indices, their states one after the other, and how many belong to each."""

    rows: list[int]
    states: Tensor
    """(sum of lengths, width)"""
    lengths: list[int]


class States:
    """The states of sequences 0..n-1, each (length, width), in files that go when this object goes.

    Written once by `States.write`; read in batches. Only one shard and one batch are in memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lengths: list[list[int]] = []  # of each shard
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    @classmethod
    def write(cls, sequences: Iterable[Tensor], shard_bytes: int = SHARD_BYTES) -> Self:
        """Write sequences of states as they come, in a temporary folder (`TMPDIR` says where)."""
        states = cls(Path(tempfile.mkdtemp(prefix="steerbench-states-")))
        for shard in _shards(sequences, shard_bytes):
            states._append(shard)
        return states

    def _append(self, shard: Sequence[Tensor]) -> None:
        content = save({"states": torch.cat(list(shard))})
        try:
            self._file(len(self._lengths)).write_bytes(content)
        except OSError as error:
            raise SteerbenchError(
                f"cannot keep states in {self._folder}: {error.strerror}; let TMPDIR name a folder with more space."
            ) from error
        self._lengths.append([len(states) for states in shard])

    def _file(self, shard: int) -> Path:
        return self._folder / f"{shard}.safetensors"

    def __len__(self) -> int:
        return sum(map(len, self._lengths))

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # never written to again

    @property
    def lengths(self) -> list[int]:
        """Number of states of each sequence."""
        return [length for shard in self._lengths for length in shard]

    def batches(
        self, rows: Collection[int], size: int, generator: torch.Generator | None = None
    ) -> Iterator[StateBatch]:
        """Yield the sequences `rows` in batches of `size`, in float32: in order, or shuffled by a generator.

        Shuffled are the shards, and the sequences within each.
        """
        waiting: list[tuple[int, Tensor]] = []
        for item in self._sequences(set(rows), generator):
            waiting.append(item)
            if len(waiting) == size:
                yield _batch(waiting)
                waiting = []
        if waiting:
            yield _batch(waiting)

    def _sequences(self, rows: set[int], generator: torch.Generator | None) -> Iterator[tuple[int, Tensor]]:
        firsts = [0]
        for lengths in self._lengths:
            firsts.append(firsts[-1] + len(lengths))
        for shard in _order(len(self._lengths), generator):
            first, lengths = firsts[shard], self._lengths[shard]
            if rows.isdisjoint(range(first, firsts[shard + 1])):
                continue
            parts = torch.split(load_file(self._file(shard))["states"], lengths)
            for i in _order(len(lengths), generator):
                if first + i in rows:
                    yield first + i, parts[i]


def _order(n: int, generator: torch.Generator | None) -> list[int]:
    order: list[int] = torch.randperm(n, generator=generator).tolist() if generator else list(range(n))
    return order


def _batch(items: Sequence[tuple[int, Tensor]]) -> StateBatch:
    states = [states for _, states in items]
    return StateBatch([row for row, _ in items], torch.cat(states).float(), [len(s) for s in states])


def _shards(sequences: Iterable[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Group sequences into lists of at most `limit` bytes, or of one sequence."""
    shard: list[Tensor] = []
    size = 0
    for states in sequences:
        if shard and size + states.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(states)
        size += states.nbytes
    if shard:
        yield shard
