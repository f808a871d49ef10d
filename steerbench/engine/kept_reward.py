"""A reward model that reads the prompts of a study once: the texts that it scores differ in the replies alone.

A decoder can go on behind what it has read; any other model reads each text from its beginning.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from steerbench.data.dialogue import Dialogue
from steerbench.engine.branches import keeps_columns
from steerbench.engine.forward_passes import CACHE, places, turns_by_length
from steerbench.engine.kept_beginnings import Ids, KeptBeginnings
from steerbench.models.batching import halving, pad
from steerbench.models.pieces import by_length, inner_size
from steerbench.models.reward import RewardModel
from steerbench.models.reward_text import READ, REPLY
from steerbench.progress import Advance

_REPLIES = "Qx0Zq", "7-yes."
"""Of which no token is the same, wherever a tokenizer cuts."""


class KeptReward(RewardModel):
    """A reward model that keeps what it has read of prompts, as far as there is room."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._written: dict[Dialogue, list[int]] = {}
        """What every reply to a dialogue has in front of it."""

    def _scores(
        self,
        dialogues: Sequence[Dialogue],
        rows: Sequence[list[int]],
        marks: Sequence[list[int]] | None,
        advance: Advance,
    ) -> Tensor:
        """Return the score of each row, read behind the beginnings that are kept if all of them are."""
        if not self.keeps:
            return self.read(rows, marks, advance)
        known = marks or [[READ] * len(ids) for ids in rows]
        starts = [self._beginning(*each) for each in zip(dialogues, rows, strict=True)]
        ready = self._kept.ready(starts)
        return self._behind(rows, known, starts, advance) if ready else self.read(rows, marks, advance)

    @cached_property
    def keeps(self) -> bool:
        """Whether texts have the scores behind their beginnings that they have whole: tried out on two short ones."""
        model = self.backbone
        if model is None or self.largest_batch is not None or not keeps_columns(model) or turns_by_length(model):
            return False
        rows, starts = [[3, 4, 5, 6, 7, 8], [5, 4, 3, 6]], [(3, 4, 5), (5,)]
        marks = [
            [READ] * len(start) + [REPLY] * (len(ids) - len(start)) for ids, start in zip(rows, starts, strict=True)
        ]
        try:
            self._kept.ready(starts)
            found, wanted = self._behind(rows, marks, starts), self.read(rows, marks)
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, IndexError):
            return False
        return bool((found - wanted).abs().max() <= torch.finfo(model.dtype).eps ** 0.5 * wanted.abs().max())

    @cached_property
    def _kept(self) -> KeptBeginnings:
        assert self.backbone is not None
        return KeptBeginnings(self.backbone)

    def _beginning(self, dialogue: Dialogue, ids: Sequence[int]) -> Ids:
        """Return the tokens that any reply to the dialogue has in front of it: none of a text that was cut there.

        They hold no part of a reply, for two that begin otherwise have them too; the last of a text is always read.
        """
        if dialogue not in self._written:
            two = self._writer.rows([self.text(dialogue, reply) for reply in _REPLIES], None)[0]
            self._written[dialogue] = two[0][: max(0, _alike(*two) - 1)]  # as many as an empty reply leaves
        return tuple(ids[: min(_alike(ids, self._written[dialogue]), len(ids) - 1)])

    @torch.inference_mode()
    def _behind(
        self,
        rows: Sequence[Sequence[int]],
        marks: Sequence[Sequence[int]],
        starts: Sequence[Ids],
        advance: Advance = lambda n: None,
    ) -> Tensor:
        """Return the score of each row, (N,) float32 on the CPU, read behind its beginning, which is ready."""
        assert self.backbone is not None
        scores = torch.zeros(len(rows))
        lengths = [len(ids) - len(start) for ids, start in zip(rows, starts, strict=True)]

        def work(chosen: list[int]) -> Tensor:
            fronts = [starts[i] for i in chosen]
            return self._read_some(
                fronts,
                [rows[i][len(front) :] for i, front in zip(chosen, fronts, strict=True)],
                [marks[i][len(front) :] for i, front in zip(chosen, fronts, strict=True)],
            )

        batches = by_length(lengths, self.batch_size, inner_size(self.backbone), self.device)
        for chosen, found in halving(batches, work):
            scores[chosen] = found
            advance(len(chosen))
        return scores

    def _read_some(
        self, starts: Sequence[Ids], rows: Sequence[Sequence[int]], marks: Sequence[Sequence[int]]
    ) -> Tensor:
        columns = max(map(len, starts))
        padding, own = torch.tensor([columns - len(start) for start in starts]), pad(marks, 0)[0]
        front = (torch.arange(columns) >= padding[:, None]).long()
        mask = torch.cat([front, (own > 0).long()], dim=1).to(self.device)
        known = {CACHE: self._kept.in_front(starts), "use_cache": True} if columns else {"use_cache": False}
        more = {"attention_mask": mask, "position_ids": places(mask)[:, columns:], **known}
        ids = pad(rows, self._pad_id)[0].to(self.device)
        return self.head(own.to(self.device), input_ids=ids, **more).float().cpu()


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
