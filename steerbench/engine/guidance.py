"""What parts that guide decoding get from the engine: the models they name, and passes of the model itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from steerbench.data.dialogue import Dialogue
from steerbench.decoding import Thinking
from steerbench.engine.install import steered
from steerbench.engine.positions import Positions
from steerbench.models.checkpoint import find
from steerbench.models.language_model import Batch, LanguageModel
from steerbench.models.reward import Reward
from steerbench.records.identity import asset
from steerbench.steering.decoding_context import DecodingContext
from steerbench.steering.parts import GuidingPart, PlacedEdit


class Given(NamedTuple):
    """What a caller gives for parts that guide: nothing, unless the steering has such parts."""

    dialogues: Sequence[Dialogue] | None = None
    reward: Reward | None = None
    generators: Sequence[torch.Generator] = ()

    def of(self, rows: Sequence[int]) -> "Given":
        """Return what belongs to some of the rows."""
        return self if self.dialogues is None else self._replace(dialogues=[self.dialogues[i] for i in rows])

    def context(self, part: GuidingPart, lm: LanguageModel, prompts: Batch, passes: "Passes") -> DecodingContext:
        """Return what one part is handed for a batch of left-padded prompts."""
        return DecodingContext(
            lm=lm,
            prompt_ids=prompts.input_ids,
            mask=prompts.attention_mask,
            models={role: _loaded(name, lm.device, lm.dtype, lm.format.thinking) for role, name in part.models.items()},
            generators=self.generators,
            steered=passes.steered,
            unsteered=passes.unsteered,
            _dialogues=self.dialogues,
            _reward=self.reward,
        )


@cache
def identified(name: str) -> str:
    """Return what identifies a model that a part names: `org/name@commit`, or the content hash of a folder."""
    source = find(name)
    return asset(source.name, source.revision)


@cache
def _loaded(name: str, device: torch.device, dtype: torch.dtype, thinking: Thinking) -> LanguageModel:
    """Load a model once per process: all parts that name it share it."""
    return LanguageModel.load(name, device=device, dtype=dtype, thinking=thinking)


def rows_at_once(parts: Sequence[GuidingPart], lm: LanguageModel, batch_size: int) -> int:
    """Return `batch_size`, or 1 where a model that one of the parts names takes one row at a time."""
    names = [name for part in parts for name in part.models.values()]
    guides = [_loaded(name, lm.device, lm.dtype, lm.format.thinking) for name in names]
    return min([batch_size, *(guide.largest_batch for guide in guides if guide.largest_batch)])


class Passes:
    """Passes of the model in the middle of a steered one, each with the edits or without them.

    Made before any edit is installed. `positions` are those of the edits installed next, if any will be.
    """

    def __init__(
        self, lm: LanguageModel, edits: Sequence[PlacedEdit], prompt_end: int, positions: Positions | None = None
    ) -> None:
        self._lm, self._edits, self._prompt_end = lm, edits, prompt_end
        self._installed = [] if positions is None else [positions]
        modules = {lm.anatomy.place(p.site).module for p in edits}
        self._own_biases = {m: m._parameters["bias"] for m in modules if "bias" in m._parameters}

    @contextmanager
    def unsteered(self) -> Iterator[None]:
        """Lay aside all edits that are installed: hooks rest, and folded biases are the model's own."""
        resting = [positions.resting for positions in self._installed]
        folded = {module: module._parameters["bias"] for module in self._own_biases}
        self._set([True] * len(resting), self._own_biases)
        try:
            yield
        finally:
            self._set(resting, folded)

    def _set(self, resting: Sequence[bool], biases: dict[nn.Module, nn.Parameter | None]) -> None:
        for positions, rests in zip(self._installed, resting, strict=True):
            positions.resting = rests
        for module, bias in biases.items():
            module.register_parameter("bias", bias)

    @contextmanager
    def steered(self, ids: Tensor, mask: Tensor) -> Iterator[None]:
        """Edit the passes inside, of which the first is over `ids`; see `DecodingContext.steered`."""
        batch = Batch(ids, mask, [self._prompt_end] * len(ids))
        positions = Positions(batch, self._lm.end_ids, cached=True)
        with self.unsteered(), steered(self._lm.model, self._lm.anatomy, self._edits, positions):
            self._installed.append(positions)
            try:
                yield
            finally:
                self._installed.remove(positions)
