"""Which examples a run uses: those whose prompt the model can take, with room left for the response."""

from collections import Counter
from collections.abc import Sequence

from steerbench.data.task import Example
from steerbench.errors import SteerbenchError
from steerbench.models.language_model import LanguageModel

MOST = 512
"""Tokens of a prompt above which it is left out, unless somebody says otherwise."""
SPARE = 64
"""Tokens left free at least, where the context is large enough, for what a method may add to a prompt."""


def prompt_limit(lm: LanguageModel, max_new_tokens: int, wanted: int | None) -> int:
    """Return the most tokens a prompt may have. Raises SteerbenchError if the context has no room for it."""
    room = lm.context_length - max_new_tokens
    if room < 1:
        raise SteerbenchError(
            f"a prompt and {max_new_tokens} new tokens do not fit the context of {lm.context_length} of {lm.name}; "
            f"lower --max-new-tokens."
        )
    spare = max(SPARE, room // 3)
    limit = min(MOST, max(room - spare, room // 2, 1)) if wanted is None else wanted
    if not 1 <= limit <= room:
        raise SteerbenchError(
            f"prompts of {limit} tokens and {max_new_tokens} new tokens do not fit the context of {lm.context_length} "
            f"of {lm.name}; lower --max-new-tokens or --max-prompt-tokens."
        )
    return limit


def fitting(
    lm: LanguageModel, examples: Sequence[Example], wanted: int, limit: int, counts: Counter[str]
) -> list[Example]:
    """Return the first `wanted` examples whose prompt has at most `limit` tokens; count those passed over by reason."""
    kept: list[Example] = []
    for example in examples:
        if len(kept) == wanted:
            break
        reason = _unfit(lm, example, limit)
        if reason is None:
            kept.append(example)
        else:
            counts[reason] += 1
    return kept


def _unfit(lm: LanguageModel, example: Example, limit: int) -> str | None:
    try:
        length = len(lm.tokens(example.prompt).prompt)
    except SteerbenchError:
        return "prompt refused by the chat template"
    return f"prompt longer than {limit} tokens" if length > limit else None
