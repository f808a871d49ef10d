"""Prompts that wait for a place in a batch that is under way, and what came of those that had one."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from steerbench.engine.install import steered
from steerbench.engine.positions import Positions
from steerbench.engine.sequences import Sequences
from steerbench.engine.shared_prefix import Beginning
from steerbench.models.language_model import LanguageModel, Tokens
from steerbench.steering.parts import PlacedEdit

Begin = Callable[[Sequence[Tokens]], Sequences]
"""Reads prompts under the steering that is installed."""


class WaitingRows:
    """All prompts of one call, each by its number, in the order in which they take their turns."""

    def __init__(
        self,
        tokens: Sequence[Tokens],
        numbers_of: Callable[[int], list[float]],
        finished: Callable[[int, list[int]], None],
    ) -> None:
        """`numbers_of` says what a row's tokens are drawn by, and `finished` is told the new ids of a row once."""
        met: dict[Tokens, int] = {}
        first = [met.setdefault(one, i) for i, one in enumerate(tokens)]
        # longest first, as always; equal prompts beside each other, which are read once
        order = sorted(range(len(tokens)), key=lambda i: (-len(tokens[i].prompt), first[i]))
        self._tokens, self._queue = tokens, deque(order)
        self.repeats = len(met) < len(tokens)
        """Whether prompts are there more than once."""
        self._taken: list[int] = []
        self._sequences: Sequences | None = None
        self._read: dict[Tokens, int] = {}
        """The prompts that `_sequences` holds, which were read last, and where."""
        self.numbers_of, self._finished = numbers_of, finished
        self._open = set(order)
        self.changing = True
        """Whether rows take the places of others, as long as it turns out that they can."""

    def __len__(self) -> int:
        return len(self._queue) if self.changing else 0

    def batches(self, size: int) -> Iterator[list[int]]:
        """Yield the rows that begin a batch; those that have taken part in one before are gone."""
        while self._queue:
            self.changing, self._sequences, self._read = True, None, {}
            yield self._next(size)

    def take(self, n: int) -> list[int]:
        """Return the next rows, at most `n`, for places of a batch that is under way."""
        rows = self._next(n)
        self._taken += rows
        return rows

    def _next(self, n: int) -> list[int]:
        return [self._queue.popleft() for _ in range(min(n, len(self._queue)))]

    def give_back(self, rows: Sequence[int]) -> None:
        """Let rows be the next ones again."""
        self._queue.extendleft(reversed(rows))

    def claimed(self, rows: Sequence[int]) -> list[int]:
        """Return the rows of which nothing has come yet; they wait no more."""
        left = [row for row in rows if row in self._open]
        if queued := set(left) & set(self._queue):
            self._queue = deque(row for row in self._queue if row not in queued)
        self._taken = []
        return left

    def restore(self) -> None:
        """Let all rows be the next ones again that a batch has taken and not finished."""
        waiting = set(self._queue)
        self.give_back([row for row in self._taken if row in self._open and row not in waiting])

    def begun(self, n: int, begin: Begin) -> list[tuple[list[int], Sequences, list[int]]]:
        """Return the next rows, at most `n`, in groups: with what holds their prompts, and for each row which of them.

        The prompts that were read last are not read again: those that follow may be further samples of theirs.
        """
        rows, groups = self.take(n), []
        again = [row for row in rows if self._tokens[row] in self._read]
        for some in (again, [row for row in rows if row not in set(again)]):
            if some and some is not again:
                prompts, _ = self.prompts(some)
                self._sequences, self._read = begin(prompts), {prompt: i for i, prompt in enumerate(prompts)}
            if some and self._sequences is not None:
                groups.append((some, self._sequences, [self._read[self._tokens[row]] for row in some]))
        return groups

    def finish(self, row: int, ids: list[int]) -> None:
        """Take the new ids of a row."""
        self._open.remove(row)
        self._finished(row, ids)

    def prompts(self, rows: Sequence[int]) -> tuple[list[Tokens], list[int]]:
        """Return the different prompts of rows, and for each row which of them is its own."""
        places: dict[Tokens, int] = {}
        copies = [places.setdefault(self._tokens[row], len(places)) for row in rows]
        return list(places), copies


class Turn(NamedTuple):
    """The rows that begin a batch, and those that wait for their places."""

    waiting: WaitingRows
    rows: list[int]
    """Numbers of the first rows."""
    copies: list[int]
    """For each of them, the row of the batch that holds its prompt."""


def begun_beside(
    lm: LanguageModel,
    edits: Sequence[PlacedEdit],
    positions: Positions,
    prefix: Beginning | None,
    prompts: Sequence[Tokens],
) -> Sequences:
    """Return prompts read under edits of their own, while those that follow `positions` rest."""
    batch = lm.left_padded(prompts)
    own = Positions(batch, lm.end_ids, cached=positions.cached)
    positions.resting = True
    try:
        with steered(lm.model, lm.anatomy, edits, own, changing=True):
            return Sequences(lm.model, batch, own, cached=own.cached, trim=True, prefix=prefix)
    finally:
        positions.resting = False
