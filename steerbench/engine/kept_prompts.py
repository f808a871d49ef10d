"""The prompts of a study: read once, and kept for every method and trial that leaves them alone."""

from collections.abc import Iterable, Sequence

from transformers import DynamicCache

from steerbench.engine.continuation import can_share
from steerbench.engine.forward_passes import turns_by_length
from steerbench.engine.kept_beginnings import LIMIT, Ids, KeptBeginnings
from steerbench.engine.shared_prefix import Beginning, SharedPrefix, generates_behind, shared_ids
from steerbench.models.language_model import Batch, LanguageModel, Tokens
from steerbench.steering.steering import Steering


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


def known_of(
    lm: LanguageModel, steering: Steering, tokens: Sequence[Tokens], kept: KeptPrompts | None
) -> Beginning | None:
    """Return what need not be read of prompts to generate behind them: all that were kept, or what they begin with.

    Asked for in the first batch, which may be tried again with fewer rows.
    """
    if not generates_behind(steering):
        return None
    if kept is not None and kept.ready(one.prompt for one in tokens):
        return kept
    shared = shared_ids(steering, tokens)
    return SharedPrefix(lm, shared) if shared and can_share(lm) else None
