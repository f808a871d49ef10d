"""How a model that reasons before it answers tells the one from the other, as its chat template shows it."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Self

from steerbench.data.dialogue import Turn
from steerbench.errors import SteerbenchError
from steerbench.models.chat_template import ChatTemplate, marked

_TAG = re.compile(r"([<\[])/?([\w:.-]*(?:think|thought|reason)[\w:.-]*)([>\]])", re.IGNORECASE)
_USUAL_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""Of templates that show them nowhere, and drop what stands between them: the first DeepSeek R1, Magistral."""


@dataclass(frozen=True)
class Thought:
    """The marks around a thought, or of the channel that the answer stands in."""

    openers: tuple[str, ...]
    """What begins a thought, or another channel."""
    closer: str
    """What the answer follows."""
    open: bool
    """Whether the prompt begins the thought, and leaves it open."""
    empty: str
    """What stands between a prompt and an answer without a thought."""
    channel: bool = False
    begun: bool = False
    """Whether the template begins the thought, also where it is closed at once: some models go on with it."""


class _View(NamedTuple):
    """One question as the template writes it."""

    prompt: str
    """Where a reply follows."""
    tail: str
    """The part of the prompt behind the question."""
    shown: str
    """What stands between the question and a last reply."""
    ahead: str | None
    """What stands between the prompt and a last reply; None where the reply does not follow the prompt."""

    @classmethod
    def of(cls, template: ChatTemplate, *, thinking: bool) -> Self:
        (question, answer) = turns = marked("user", "assistant")
        prompt = template.text((question,), reply_follows=True, thinking=thinking)
        tail = _behind(prompt, question)
        try:
            whole = template.text(turns, reply_follows=False, thinking=thinking)
        except SteerbenchError:
            return cls(prompt, tail, "", None)
        head = whole[: whole.index(answer.text)]
        return cls(
            prompt, tail, _behind(head, question), head.removeprefix(prompt) if head.startswith(prompt) else None
        )


def thought_in(template: ChatTemplate, special: Collection[str], *, thinking: bool = True) -> Thought | None:
    """Return how thoughts are marked, or None for a model that has none; `special` are its special tokens.

    Thoughts are known by tags such as `<think>`, which the prompt or a last reply shows or which a past reply loses
    with all between them; channels by special tokens between the prompt and a last reply.
    """
    usual, off = _View.of(template, thinking=True), _View.of(template, thinking=False)
    view = usual if thinking else off
    tags = _tags(template, usual, off)
    if tags is None:
        return _channel(template, view, special)
    opener, closer = tags
    opened = view.tail.rfind(opener) > view.tail.rfind(closer)
    return Thought((opener,), closer, opened and thinking, _empty(view, usual, off, opener, closer), begun=opened)


def _tags(template: ChatTemplate, usual: _View, off: _View) -> tuple[str, str] | None:
    for text in (usual.tail, usual.shown, off.tail, usual.prompt):
        if match := _TAG.search(text):
            left, name, right = match.groups()
            return f"{left}{name}{right}", f"{left}/{name}{right}"
    return next((tags for tags in _USUAL_TAGS if _is_dropped(template, *tags)), None)


def _is_dropped(template: ChatTemplate, opener: str, closer: str) -> bool:
    """Whether the thought of a past reply is left out."""
    first, reply, last = marked("user", "assistant", "user")
    thoughtful = Turn("assistant", f"{opener}Jm3Yp{closer}{reply.text}")
    try:
        text = template.text((first, thoughtful, last), reply_follows=True)
    except SteerbenchError:
        return False
    return reply.text in text and "Jm3Yp" not in text


def _empty(view: _View, usual: _View, off: _View, opener: str, closer: str) -> str:
    """Return an empty thought: the template's own, or one in the form that is most usual."""
    if view.ahead is not None and closer in view.ahead:
        return view.ahead
    if view.tail.rfind(opener) > view.tail.rfind(closer):
        return f"\n{closer}\n\n"
    if closer in view.tail or (view is off and off.prompt != usual.prompt):
        return ""
    if off.prompt.startswith(view.prompt) and off.prompt != view.prompt:
        return off.prompt.removeprefix(view.prompt)
    return f"{opener}\n\n{closer}\n\n"


def _channel(template: ChatTemplate, view: _View, special: Collection[str]) -> Thought | None:
    """Return the channel of the answer; a header that the prompt lacks altogether is none."""
    if view.ahead is None or not any(token in view.ahead for token in special):
        return None
    if template.text(marked("user"), reply_follows=False) == view.prompt:
        return None
    return Thought(tuple(special), view.ahead.strip(), open=False, empty=view.ahead, channel=True)


def _behind(text: str, turn: Turn) -> str:
    return text[text.rindex(turn.text) + len(turn.text) :]
