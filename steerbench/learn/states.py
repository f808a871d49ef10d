"""States of many sequences, kept on disk in shards: memory does not grow with their number."""

import json
import os
import tempfile
import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from steerbench.errors import SteerbenchError
from steerbench.learn.study_folder import write_file

SHARD_BYTES = 64 * 2**20


class StateBatch(NamedTuple):
    """Some sequences: their indices, their states one after the other, and how many belong to each."""

    rows: list[int]
    states: Tensor
    """(sum of lengths, width)"""
    lengths: list[int]


class _Shard(NamedTuple):
    """Consecutive sequences, and where their states lie in the file."""

    first: int
    lengths: list[int]
    start: int
    size: int


class States:
    """The states of sequences 0..n-1, each (length, width), in a temporary file (`TMPDIR` says where).

    Written once by `States.write`, read in batches: only one shard and one batch are in memory. The file has no name;
    the system takes it back when this object goes, or the process, however it ends.
    """

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="steerbench-", buffering=0)  # noqa: SIM115 - closed below
        except OSError as error:
            raise _no_room(error) from error
        weakref.finalize(self, self._file.close)
        self._shards: list[_Shard] = []
        self._width, self._dtype = 0, torch.float32

    @classmethod
    def write(cls, sequences: Iterable[Tensor], shard_bytes: int = SHARD_BYTES) -> Self:
        """Write sequences of states as they come. Raises SteerbenchError if the disk is full."""
        return cls()._filled(sequences, shard_bytes)

    def _filled(self, sequences: Iterable[Tensor], shard_bytes: int = SHARD_BYTES) -> Self:
        for shard in _shards(sequences, shard_bytes):
            self._append(torch.cat(shard).contiguous(), [len(states) for states in shard])
        return self

    def _append(self, joined: Tensor, lengths: list[int]) -> None:
        self._width, self._dtype = joined.shape[1], joined.dtype
        start = self._file.tell()
        try:
            left = joined.view(torch.uint8).numpy().tobytes()
            while left:  # a nearly full disk takes a part
                left = left[self._file.write(left) :]
        except OSError as error:
            raise _no_room(error) from error
        self._shards.append(_Shard(len(self), lengths, start, joined.nbytes))

    def _read(self, shard: _Shard) -> Sequence[Tensor]:
        buffer = bytearray(shard.size)
        self._file.seek(shard.start)
        if self._file.readinto(buffer) != shard.size:
            raise RuntimeError(f"the file of states ends within the shard at {shard.start}")
        return torch.split(torch.frombuffer(buffer, dtype=self._dtype).reshape(-1, self._width), shard.lengths)

    def __len__(self) -> int:
        return sum(len(shard.lengths) for shard in self._shards)

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # never written to again

    @property
    def lengths(self) -> list[int]:
        """Number of states of each sequence."""
        return [length for shard in self._shards for length in shard.lengths]

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
        for k in _order(len(self._shards), generator):
            shard = self._shards[k]
            if rows.isdisjoint(range(shard.first, shard.first + len(shard.lengths))):
                continue
            parts = self._read(shard)
            for i in _order(len(parts), generator):
                if shard.first + i in rows:
                    yield shard.first + i, parts[i]


class KeptStates(States):
    """States in files of a folder, a shard each, for other processes, too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards = []

    @classmethod
    def keep(cls, folder: Path, sequences: Iterable[Tensor], shard_bytes: int = SHARD_BYTES) -> list[str]:
        """Write sequences of states as they come, and return the names of the files."""
        return [f"{shard.start:06}.safetensors" for shard in cls(folder)._filled(sequences, shard_bytes)._shards]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the states that `keep` wrote; what they are is read from the files batch by batch."""
        states, first = cls(folder), 0
        for i, path in enumerate(sorted(folder.glob("*.safetensors"))):
            with safe_open(path, framework="pt") as file:
                lengths = json.loads(file.metadata()["lengths"])
            states._shards.append(_Shard(first, lengths, i, path.stat().st_size))
            first += len(lengths)
        return states

    def _append(self, joined: Tensor, lengths: list[int]) -> None:
        number = len(self._shards)
        write_file(self._folder, f"{number:06}.safetensors", save({"states": joined}, {"lengths": json.dumps(lengths)}))
        self._shards.append(_Shard(len(self), lengths, number, joined.nbytes))

    def _read(self, shard: _Shard) -> Sequence[Tensor]:
        with safe_open(self._folder / f"{shard.start:06}.safetensors", framework="pt") as file:
            return torch.split(file.get_tensor("states"), shard.lengths)


def _no_room(error: OSError) -> SteerbenchError:
    where = os.environ.get("TMPDIR") or "the temporary folder"
    return SteerbenchError(f"cannot keep states in {where}: {error.strerror}; let TMPDIR name a folder with space.")


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
