"""Dialogues, and the plain text format of HH-RLHF."""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

from steerbench.errors import SteerbenchError

Role = Literal["system", "user", "assistant"]


class Turn(NamedTuple):
    """One message of a dialogue."""

    role: Role
    """`system`, `user` or `assistant`."""
    text: str
    """What is said, without a marker of the role."""


Dialogue = tuple[Turn, ...]
"""Turns in their order; as a prompt it ends in one of the user."""

_MARKER = re.compile(r"(?:^|\r?\n\r?\n)(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_TAGS: dict[Role, str] = {"user": "Human", "assistant": "Assistant"}


def user(text: str) -> Dialogue:
    """Return the dialogue of one user turn."""
    return (Turn("user", text),)


def dialogues_of(prompts: "str | Dialogue | Sequence[str | Dialogue]") -> list[Dialogue]:
    """Return prompts as dialogues: a text is one user turn, and a single prompt is a list of one."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], Turn)):
        return dialogues_of([prompts])  # type: ignore[list-item]
    return [_dialogue_of(prompt) for prompt in prompts]


def _dialogue_of(prompt: object) -> Dialogue:
    if isinstance(prompt, str):
        return user(prompt)
    turns = tuple(prompt) if isinstance(prompt, Iterable) else ()
    if not turns or not all(isinstance(turn, Turn) for turn in turns):
        raise SteerbenchError(f"{prompt!r} is no prompt; give a text, or turns such as Turn('user', 'Hello').")
    return turns


def parse_hh(text: str) -> Dialogue:
    r"""Split HH-RLHF text (`\n\nHuman: ...\n\nAssistant: ...`) into turns, each stripped.

    A marker counts only at the very beginning or after an empty line; `Human:` inside a line is text. Lines may end in
    CRLF, which stays as it is within a turn.
    Raises ValueError if the text does not begin with a human turn.
    """
    parts = _MARKER.split(text)
    if parts[0].strip() or len(parts) < 3 or parts[1] != "Human":
        raise ValueError("does not begin with a human turn")
    return tuple(Turn(_ROLES[tag], body.strip()) for tag, body in zip(parts[1::2], parts[2::2], strict=True))


def merge(dialogue: Dialogue) -> Dialogue:
    """Join neighbouring turns of one role: most chat templates demand that roles alternate."""
    runs = [(role, [turn.text for turn in turns]) for role, turns in groupby(dialogue, key=lambda turn: turn.role)]
    return tuple(Turn(role, "\n\n".join(texts)) for role, texts in runs)


def plain_text(dialogue: Dialogue, response: str | None = None) -> str:
    r"""Write a dialogue as `Human: ...\n\nAssistant: ...`; a system turn stands first, without a tag.

    With `response=None` the text ends in an open `Assistant:`.
    """
    lines = [t.text if t.role == "system" else f"{_TAGS[t.role]}: {t.text}" for t in dialogue]
    lines.append("Assistant:" if response is None else f"Assistant: {response}")
    return "\n\n".join(lines)
