"""Passes of a model in the middle of a steered one."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from steerbench.engine.install import steered
from steerbench.engine.last_pass import LastPass
from steerbench.engine.positions import Positions
from steerbench.models.language_model import Batch, LanguageModel
from steerbench.steering.parts import PlacedEdit, PromptPart


class Passes:
    """Passes of the model in the middle of a steered one, each with the edits or without them.

    Made before any edit is installed. `positions` are those of the edits installed next, if any will be.
    """

    last: LastPass | None = None
    """What the pass that gave the logits left behind, where somebody follows it."""

    def __init__(
        self,
        lm: LanguageModel,
        edits: Sequence[PlacedEdit],
        prompt_end: int,
        positions: Positions | None = None,
        prompt: Sequence[PromptPart] = (),
    ) -> None:
        self._lm, self.edits, self._prompt_end, self.prompt = lm, edits, prompt_end, prompt
        self.twins: dict[int, Tensor] = {}
        """The logits of twin rows of the pass that gave the logits, by `id` of their part."""
        self.followers: WeakSet[Any] = WeakSet()
        """What keeps something of each row and has `keep(rows)` to go on with some of them."""
        self._aside: list[tuple[list[bool], dict[nn.Module, nn.Parameter | None]]] = []
        self._installed = [] if positions is None else [positions]
        modules = {lm.anatomy.place(p.site).module for p in edits}
        self._own_biases = {m: m._parameters["bias"] for m in modules if "bias" in m._parameters}

    def keep(self, own: Sequence[int], everywhere: Sequence[int]) -> None:
        """Have all that keeps something of the rows go on with some: of the own ones, and of all with their twins."""
        for follower in list(self.followers):
            follower.keep(own)
        if self.last is not None:
            self.last.keep(everywhere)

    @contextmanager
    def unsteered(self) -> Iterator[None]:
        """Lay aside all edits that are installed: hooks rest, and folded biases are the model's own."""
        resting = [positions.resting for positions in self._installed]
        folded = {module: module._parameters["bias"] for module in self._own_biases}
        self._set([True] * len(resting), self._own_biases)
        self._aside.append((resting, folded))
        self._rest(True)
        try:
            yield
        finally:
            self._aside.pop()
            self._rest(bool(self._aside))
            self._set(resting, folded)

    def _rest(self, resting: bool) -> None:
        if self.last is not None:
            self.last.resting = resting

    @contextmanager
    def branching(self) -> Iterator[None]:
        """Edit the passes inside as the one that gave the logits, whose cache they continue with candidates."""
        positions = self._installed[:1]
        now = [p.resting for p in self._installed], {m: m._parameters["bias"] for m in self._own_biases}
        if self._aside:
            self._set(*self._aside[0])
        with ExitStack() as stack:
            for one in positions:
                stack.enter_context(one.branching())
            try:
                yield
            finally:
                self._set(*now)

    def _set(self, resting: Sequence[bool], biases: dict[nn.Module, nn.Parameter | None]) -> None:
        for positions, rests in zip(self._installed, resting, strict=True):
            positions.resting = rests
        for module, bias in biases.items():
            module.register_parameter("bias", bias)

    @contextmanager
    def steered(self, ids: Tensor, mask: Tensor) -> Iterator[Positions]:
        """Edit the passes inside, of which the first is over `ids`; see `DecodingContext.steered`."""
        with self.steered_as(self.edits, ids, mask, [self._prompt_end] * len(ids)) as positions:
            yield positions

    @contextmanager
    def steered_as(
        self, edits: Sequence[PlacedEdit], ids: Tensor, mask: Tensor, prompt_ends: list[int]
    ) -> Iterator[Positions]:
        """Edit the passes inside with these edits alone; `prompt_ends` are the columns after the prompts."""
        positions = Positions(Batch(ids, mask, prompt_ends), self._lm.end_ids, cached=True)
        with self.unsteered(), steered(self._lm.model, self._lm.anatomy, edits, positions):
            self._installed.append(positions)
            try:
                yield positions
            finally:
                self._installed.remove(positions)
