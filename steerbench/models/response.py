"""The response: generated tokens, and the one place that decides where they end."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Finish = Literal["end", "turn", "length"]


@dataclass(frozen=True)
class Response:
    """A cut response. Fit, reward labels, metrics and judges all see this text, and states are cut at these tokens."""

    text: str
    """Without special tokens, stripped. May be empty."""
    ids: tuple[int, ...]
    """The tokens kept, the end token included where the model emitted it."""
    finish: Finish
    """`end`: the model stopped; `turn`: cut at a hallucinated next turn; `length`: cut at the token limit."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the text, the end token not counted."""
        return len(self.ids) - (self.finish == "end")


def cut_response(tokenizer: Any, ids: Sequence[int], end_ids: Sequence[int], markers: Sequence[str]) -> Response:
    """Cut generated ids at the first end token, or where a line begins with a turn marker, whichever is first.

    Markers count only at the beginning of a line and in their own case: prose that mentions `human:` stays whole.
    """
    stop = next((i for i, token in enumerate(ids) if token in end_ids), None)
    body = list(ids if stop is None else ids[:stop])
    text = _decode(tokenizer, body)
    turn = _turn_start(text, markers)
    if turn is not None:
        return Response(text[:turn].strip(), tuple(body[: _tokens_for(tokenizer, body, turn)]), "turn")
    if stop is None:
        return Response(text.strip(), tuple(body), "length")
    return Response(text.strip(), (*body, ids[stop]), "end")


def _turn_start(text: str, markers: Sequence[str]) -> int | None:
    if not markers:
        return None
    match = re.search(rf"(?:^|\n)[ \t]*(?:{'|'.join(map(re.escape, markers))})", text)
    return len(text[: match.start()].rstrip()) if match else None


def _tokens_for(tokenizer: Any, ids: list[int], length: int) -> int:
    """Return the least number of tokens whose text begins with the first `length` characters of the whole.

    Length alone would not do: half of an emoji decodes to one character, too.
    """
    start = _decode(tokenizer, ids)[:length]
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if _decode(tokenizer, ids[:middle]).startswith(start):
            high = middle
        else:
            low = middle + 1
    return low


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
