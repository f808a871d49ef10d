"""The response: generated tokens, and the one place that decides where they end."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from steerbench.models.thought import Thought

Finish = Literal["end", "turn", "length"]


@dataclass(frozen=True)
class Response:
    """A cut response. Fit, reward labels, metrics and judges all see this text, and states are cut at these tokens."""

    text: str
    """Without special tokens, stripped. May be empty."""
    ids: tuple[int, ...]
    """The tokens kept, the end token included where the model emitted it, and a thought before the answer."""
    finish: Finish
    """`end`: the model stopped; `turn`: cut at a hallucinated next turn; `length`: cut at the token limit."""
    thought: int = 0
    """How many of the tokens come before the answer, which is the text: a thought, or other channels."""
    draws: tuple[int, ...] = field(default=(), compare=False)
    """Among how many candidates, drawn alike, each choice was made, one after another, where there was a choice."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the text, the end token not counted."""
        return len(self.ids) - self.thought - (self.finish == "end")

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The tokens of the text, without a thought before it and without the end token."""
        return self.ids[self.thought : self.thought + self.n_tokens]


def cut_response(
    tokenizer: Any,
    ids: Sequence[int],
    end_ids: Sequence[int],
    markers: Sequence[str],
    thought: Thought | None = None,
) -> Response:
    """Cut generated ids at the first end token, or where a line begins with a turn marker, whichever is first.

    Markers count only at the beginning of a line and in their own case: prose that mentions `human:` stays whole.
    The text is the answer alone where the marks of a `thought` are given; empty if it never comes.
    """
    stop = next((i for i, token in enumerate(ids) if token in end_ids), None)
    body, end = (list(ids), ()) if stop is None else (list(ids[:stop]), (ids[stop],))
    if thought is None:
        return _cut(tokenizer, body, end, markers)
    answer = _answer_in(tokenizer, body, thought)
    if answer is None:
        return Response("", (*body, *end), "end" if end else "length", thought=len(body))
    whole = answer.stop == len(body)
    cut = _cut(tokenizer, body[answer.start : answer.stop], end if whole else (), markers, answer.lead)
    finish = cut.finish if whole else "turn"
    return Response(cut.text, (*body[: answer.start], *cut.ids), finish, thought=answer.start)


def _cut(tokenizer: Any, body: list[int], end: tuple[int, ...], markers: Sequence[str], lead: str = "") -> Response:
    """Cut at a turn marker; `lead` is the beginning of the text, from a token before."""
    text = lead + _decode(tokenizer, body)
    turn = _turn_start(text, markers)
    if turn is not None:
        kept = _tokens_for(tokenizer, body, max(turn - len(lead), 0))
        return Response(text[:turn].strip(), tuple(body[:kept]), "turn")
    return Response(text.strip(), (*body, *end), "end" if end else "length")


class _Answer(NamedTuple):
    """Which tokens are the answer, and its first characters where they share a token with what comes before."""

    start: int
    stop: int
    lead: str


def _answer_in(tokenizer: Any, ids: list[int], thought: Thought) -> _Answer | None:
    """Find what stands behind the last thought, or in the last channel of answers; None where there is none."""
    text = _decode(tokenizer, ids, special=True)
    found = _last_channel(text, thought) if thought.channel else _behind_thoughts(text, thought)
    if found is None:
        return None
    begin, end = found
    start = _tokens_for(tokenizer, ids, begin, special=True)
    stop = len(ids) if end == len(text) else max(start, _tokens_for(tokenizer, ids, end, special=True))
    return _Answer(start, stop, _decode(tokenizer, ids[:start], special=True)[begin:])


def _behind_thoughts(text: str, thought: Thought) -> tuple[int, int] | None:
    """Return where the answer begins and ends; None for a thought that is never closed, and nothing before it.

    A reply has thoughts only where it begins with one, or the template does: elsewhere the marks are words of the
    answer. So are closers that close nothing.
    """
    (opener,), begin, end = thought.openers, 0, len(text)
    opened = 0 if thought.open else len(text) - len(text.lstrip())
    if not thought.open and not text.startswith(opener, opened) and not (thought.begun and thought.closer in text):
        return begin, end
    while opened >= 0:
        closed = text.find(thought.closer, opened)
        if closed < 0:
            return (begin, opened) if text[begin:opened].strip() else None
        begin = closed + len(thought.closer)
        begin += len(text[begin:]) - len(text[begin:].lstrip())
        opened = text.find(opener, begin)
    return begin, end


def _last_channel(text: str, channel: Thought) -> tuple[int, int] | None:
    """Return where the answer begins and ends; None where there are other channels alone.

    Between the name of the channel and the message may stand the form that it has: `final <|constrain|>json`.
    """
    head, mark, tail = channel.closer.rpartition(next((o for o in channel.openers if channel.closer.endswith(o)), ""))
    form = rf"{re.escape(head.rstrip())}(?:\s*<\|constrain\|>\s*[\w.-]*)?\s*{re.escape(mark + tail)}\s*"
    last = max((found.end() for found in re.finditer(form, text)), default=0)
    end = min((i for mark in channel.openers if (i := text.find(mark, last)) >= 0), default=len(text))
    return None if end < len(text) and not text[last:end].strip() else (last, end)


def _turn_start(text: str, markers: Sequence[str]) -> int | None:
    if not markers:
        return None
    match = re.search(rf"(?:^|\n)[ \t]*(?:{'|'.join(map(re.escape, markers))})", text)
    return len(text[: match.start()].rstrip()) if match else None


def _tokens_for(tokenizer: Any, ids: list[int], length: int, *, special: bool = False) -> int:
    """Return the least number of tokens whose text begins with the first `length` characters of the whole.

    Length alone would not do: half of an emoji decodes to one character, too.
    """
    start = _decode(tokenizer, ids, special=special)[:length]
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if _decode(tokenizer, ids[:middle], special=special).startswith(start):
            high = middle
        else:
            low = middle + 1
    return low


def _decode(tokenizer: Any, ids: Sequence[int], *, special: bool = False) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False))
