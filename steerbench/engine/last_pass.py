"""What the last pass of the model left behind: the states that its logits come from, and its cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from steerbench.engine.forward_passes import given_cache, left_cache
from steerbench.engine.hooks import watched
from steerbench.models.language_model import LanguageModel
from steerbench.models.sites import Site
from steerbench.steering.parts import LogitsPart
from steerbench.steering.reweighting import Reweighting


class LastPass:
    """Follows the passes of a model from outside, but for those that go by while it rests."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self.resting = False
        self.cache: Any = None
        self._ids: Tensor | None = None
        self._state: Tensor | None = None

    @classmethod
    def wanted(cls, lm: LanguageModel, parts: Sequence[LogitsPart]) -> Self | None:
        """Return a follower if one of the parts reads states."""
        return cls(lm) if any(isinstance(p, Reweighting) and p.reads_states for p in parts) else None

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow the passes inside. Enter behind the edits: states are seen as these leave them."""
        model = self._lm.model
        handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end),
        ]
        try:
            with watched(self._lm.anatomy.place(Site("final")), self._read):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows, of which the cache is rid already."""
        if self._ids is not None and self._state is not None:
            self._ids, self._state = self._ids[list(rows)], self._state[list(rows)]

    def of(self, ids: Tensor) -> Tensor | None:
        """Return the last state of each row, (rows, width), float32, if the passes so far were over just these ids."""
        rows = len(ids)  # behind them there may be those of twins
        if self._ids is None or self._state is None or not torch.equal(self._ids[:rows], ids):
            return None
        return self._state[:rows]

    def cache_of(self, ids: Tensor) -> Any:
        """Return the cache that the last pass left, if it holds just these rows."""
        return self.cache if self.of(ids) is not None and self._ids is not None and len(self._ids) == len(ids) else None

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.resting:
            return
        ids: Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        cache = given_cache(kwargs)
        past = 0 if cache is None else int(cache.get_seq_length())
        continues = past and self._ids is not None and past == self._ids.shape[1] and len(ids) == len(self._ids)
        self._ids = torch.cat([self._ids, ids], dim=1) if continues and self._ids is not None else ids
        self.cache = None

    def _end(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        if not self.resting:
            self.cache = left_cache(output)

    def _read(self, activation: Tensor) -> None:
        if not self.resting and self._ids is not None:
            rows = activation.reshape(len(self._ids), -1, activation.shape[-1])
            self._state = rows[:, -1].float()
