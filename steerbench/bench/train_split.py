"""The training examples of a setup, read when a method first asks for them: a static prompt needs no data."""

from collections.abc import Callable, Sequence
from typing import overload

from steerbench.data.task import Example


class TrainSplit(Sequence[Example]):
    """A sequence that asks `read` for its items each time; what is read is kept there."""

    def __init__(self, read: Callable[[], Sequence[Example]]) -> None:
        self._read = read

    def __len__(self) -> int:
        return len(self._read())

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self._read()[index]
