"""Models that read along: another one, or the same one behind another prompt, each on a cache of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerbench.engine.forward_passes import CACHE, continued, left_cache, places, run
from steerbench.engine.sequences import can_repeat
from steerbench.errors import SteerbenchError
from steerbench.models.language_model import LanguageModel, Tokens
from steerbench.models.modes import evaluating


class Companion:
    """Reads the rows of a batch as they grow, each id once: `Companion(lm)`."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._ids: Tensor | None = None
        self._cache: Any = None

    def logits(self, ids: Tensor, prompt_mask: Tensor) -> Tensor:
        """Return the logits of the next token of each row, (rows, vocabulary), float32.

        `ids` are (rows, columns), left padded; `prompt_mask` (rows, prompt columns) says which of the first are real.
        """
        seen = self._seen(ids)
        mask = continued(prompt_mask, ids)
        positions = places(mask)[:, seen:]
        cache = self._cache if seen else None
        with evaluating(self._lm.model):
            out = run(
                self._lm.model,
                ids[:, seen:],
                mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{CACHE: cache},
            )
        self._cache = left_cache(out)
        self._ids = ids if self._cache is not None else None
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows; a cache that cannot be parted is forgotten, and the rows are read again."""
        if self._ids is None or not can_repeat(self._lm.model):
            self._ids = self._cache = None
            return
        chosen = torch.tensor(rows, device=self._ids.device)
        self._ids = self._ids[chosen]
        self._cache.batch_select_indices(chosen)

    def _seen(self, ids: Tensor) -> int:
        """Return how many columns are in the cache: none, unless these ids go on with those that it holds."""
        if self._ids is None or len(self._ids) != len(ids):
            return 0
        width = self._ids.shape[1]
        return width if width < ids.shape[1] and torch.equal(self._ids, ids[:, :width]) else 0


def forced_logits(lm: LanguageModel, tokens: Tokens) -> Tensor:
    """Return the logits that each token of a response is drawn from, (tokens, vocabulary), float32; in one pass."""
    ids = torch.tensor([tokens.prompt + tokens.response], device=lm.device)
    with evaluating(lm.model):
        out = run(lm.model, ids, torch.ones_like(ids), use_cache=False)
    first = len(tokens.prompt) - 1
    logits: Tensor = out.logits[0, first : first + len(tokens.response)].float()
    return logits


def same_size(logits: Tensor, size: int) -> Tensor:
    """Return logits cut or filled up to a vocabulary of this size: families pad theirs in different ways."""
    missing = size - logits.shape[-1]
    if missing <= 0:
        return logits[..., :size]
    return torch.cat([logits, logits.amin(-1, keepdim=True).expand(*logits.shape[:-1], missing)], dim=-1)


def check_vocabulary(lm: LanguageModel, guide: LanguageModel) -> None:
    """Raise SteerbenchError if a guide gives other ids to texts than the model."""
    if guide.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
        raise SteerbenchError(
            f"{guide.name} has another vocabulary than {lm.name}, whose tokens it is to weigh; "
            f"name a model with the same tokenizer, or use a method that hands over words, such as nudging."
        )
