"""The prompts of a study: read once, and kept for every method and trial that leaves them alone."""

from collections.abc import Iterable

from transformers import DynamicCache

from steerbench.engine.continuation import can_share
from steerbench.engine.forward_passes import turns_by_length
from steerbench.engine.kept_beginnings import LIMIT, Ids, KeptBeginnings
from steerbench.models.language_model import Batch, LanguageModel


class KeptPrompts:
    """What a model has read of prompts: all but the last token of each, from which a reply is drawn."""

    def __init__(self, lm: LanguageModel, limit: int = LIMIT) -> None:
        self._lm, self._beginnings = lm, KeptBeginnings(lm.model, limit)

    def ready(self, prompts: Iterable[Ids]) -> bool:
        """Tell whether passes can begin behind these prompts, and read those that are not known yet.

        Not where there is no room for all of them, nor with a model whose cache is no place to begin behind. Nothing
        may be installed that edits them.
        """
        usable = can_share(self._lm) and not turns_by_length(self._lm.model)
        return usable and self._beginnings.ready(prompt[:-1] for prompt in prompts)

    def in_front(self, batch: Batch) -> DynamicCache:
        """Return a cache of all columns but the last one of left-padded prompts, all of which are ready."""
        rows = zip(batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True)
        prompts = [tuple(i for i, real in zip(ids, mask, strict=True) if real) for ids, mask in rows]
        return self._beginnings.in_front([prompt[:-1] for prompt in prompts])
