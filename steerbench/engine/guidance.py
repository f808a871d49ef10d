"""What parts that guide decoding get from the engine: the models they name, and passes of the model itself."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from steerbench.data.dialogue import Dialogue
from steerbench.decoding import Thinking
from steerbench.engine.passes import Passes as Passes
from steerbench.engine.steps import DecodingSteps
from steerbench.models.checkpoint import find
from steerbench.models.language_model import Batch, LanguageModel
from steerbench.models.reward import Reward
from steerbench.records.identity import asset
from steerbench.steering.decoding_context import DecodingContext
from steerbench.steering.parts import GuidingPart
from steerbench.steering.steering import Steering
from steerbench.steering.step import Step


class Given(NamedTuple):
    """What a caller gives for parts that guide: nothing, unless the steering has such parts."""

    dialogues: Sequence[Dialogue] | None = None
    reward: Reward | None = None
    generators: Sequence[torch.Generator] = ()

    def of(self, rows: Sequence[int]) -> "Given":
        """Return what belongs to some of the rows."""
        return self if self.dialogues is None else self._replace(dialogues=[self.dialogues[i] for i in rows])

    def context(self, part: GuidingPart, lm: LanguageModel, prompts: Batch, passes: Passes) -> DecodingContext:
        """Return what one part is handed for a batch of left-padded prompts."""

        def step(ids: Tensor, logits: Tensor) -> Step:
            return steps(ids, logits)

        context = DecodingContext(
            lm=lm,
            prompt_ids=prompts.input_ids,
            mask=prompts.attention_mask,
            models={role: loaded(name, lm.device, lm.dtype, lm.format.thinking) for role, name in part.models.items()},
            generators=self.generators,
            steered=passes.steered,
            unsteered=passes.unsteered,
            step=step,
            _dialogues=self.dialogues,
            _reward=self.reward,
        )
        steps = DecodingSteps(context, passes, part)
        passes.followers.add(steps)
        return context


@cache
def identified(name: str) -> str:
    """Return what identifies a model that a part names: `org/name@commit`, or the content hash of a folder."""
    source = find(name)
    return asset(source.name, source.revision)


@cache
def loaded(name: str, device: torch.device, dtype: torch.dtype, thinking: Thinking) -> LanguageModel:
    """Load a model once per process: all parts that name it share it."""
    return LanguageModel.load(name, device=device, dtype=dtype, thinking=thinking)


def rows_at_once(parts: Sequence[GuidingPart], lm: LanguageModel, batch_size: int) -> int:
    """Return `batch_size`, or 1 where a model that one of the parts names takes one row at a time."""
    names = [name for part in parts for name in part.models.values()]
    guides = [loaded(name, lm.device, lm.dtype, lm.format.thinking) for name in names]
    return min([batch_size, *(guide.largest_batch for guide in guides if guide.largest_batch)])


def processors_of(
    lm: LanguageModel, batch: Batch, steering: Steering, given: Given, passes: Passes
) -> list[LogitsProcessor]:
    """Return the processors of the logits parts, around each of which the edits rest, if there are any."""
    processors = [part.processor_in(given.context(part, lm, batch, passes)) for part in steering.logits]
    return [_Unsteered(p, passes) for p in processors] if steering.edits or passes.last else processors


class _Unsteered(LogitsProcessor):
    """Calls a processor while the edits rest."""

    def __init__(self, processor: LogitsProcessor, passes: Passes) -> None:
        self._processor, self._passes = processor, passes

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        with self._passes.unsteered():
            changed: Tensor = self._processor(input_ids, scores)
        return changed
