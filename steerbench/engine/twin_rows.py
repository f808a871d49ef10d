"""Twins as rows of the batch: one pass gives the logits of both, behind each its own prompt or under its own edits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from steerbench.engine.guidance import Given
from steerbench.engine.passes import Passes
from steerbench.engine.steps import twin_tokens
from steerbench.models.language_model import Batch, LanguageModel, Tokens
from steerbench.steering.parts import Edit, PlacedEdit
from steerbench.steering.reweighting import Reweighting
from steerbench.steering.steering import Steering


class OnRows(Edit):
    """Another edit in some of the rows of a batch."""

    def __init__(self, edit: Edit, first: int, last: int) -> None:
        super().__init__()
        self.edit, self.first, self.last = edit, first, last

    def forward(self, h: Tensor, state: object) -> Tensor:
        """Edit these rows."""
        edited: Tensor = self.edit(h[self.first : self.last], None)
        return torch.cat([h[: self.first], edited, h[self.last :]])


@dataclass(frozen=True)
class TwinRows:
    """A batch with the rows of its twins behind its own."""

    own: Batch
    """Its own rows, padded like all."""
    whole: Batch
    edits: list[PlacedEdit]
    """Those of the twins that have others than the steering."""
    parts: list[Reweighting]
    """Those whose twins they are, in order."""

    @classmethod
    def of(cls, lm: LanguageModel, batch: Batch, steering: Steering, given: Given) -> "TwinRows | None":
        """Return the rows of all twins that can share a pass; None where there is none, or one that cannot."""
        parts = [p for p in steering.logits if isinstance(p, Reweighting) and p.beta and p.twin]
        if not parts or lm.largest_batch is not None or not all(_shares(p, steering, given) for p in parts):
            return None
        n = len(batch.input_ids)
        rows = [
            tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        ]
        prompts, edits = [Tokens(row) for row in rows], []
        for i, part in enumerate(parts, 1):
            twin = part.twin
            assert twin is not None
            dialogues = given.dialogues or ()
            prompts += twin_tokens(lm, dialogues, steering.prompt, twin) if twin.prompt else prompts[:n]
            for placed in twin.edits or ():
                edits.append(PlacedEdit(placed.site, OnRows(placed.edit, i * n, (i + 1) * n), placed.scope))
        whole = lm.left_padded(prompts)
        own = Batch(whole.input_ids[:n], whole.attention_mask[:n], whole.prompt_ends[:n])
        return cls(own, whole, edits, parts)

    def processor(self, processors: Sequence[LogitsProcessor], passes: Passes) -> LogitsProcessor:
        """Return a processor of all rows that runs those of the batch on its own ones; twins take the same tokens."""
        return _OwnRows(self, processors, passes)


def _shares(part: Reweighting, steering: Steering, given: Given) -> bool:
    """Tell whether a twin can be rows of the batch: edits that tell rows apart must not meet others."""
    twin = part.twin
    if twin is None or (twin.prompt and given.dialogues is None):
        return False
    if twin.edits is None:
        return True
    return not steering.edits and all(type(p.edit).start is Edit.start for p in twin.edits)


class _OwnRows(LogitsProcessor):
    def __init__(self, twins: TwinRows, processors: Sequence[LogitsProcessor], passes: Passes) -> None:
        self._twins, self._processors, self._passes = twins, processors, passes

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        n = len(scores) // (1 + len(self._twins.parts))
        own, *others = torch.split(scores, n)
        self._passes.twins = {id(part): logits for part, logits in zip(self._twins.parts, others, strict=True)}
        for processor in self._processors:
            own = processor(input_ids[:n], own)
        return torch.cat([own] * (len(others) + 1))
