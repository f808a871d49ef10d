"""How a dialogue becomes the text a language model sees: its own chat template, or a named plain format."""

import json
from functools import cached_property
from hashlib import sha256
from typing import Any

from steerbench.data.dialogue import Dialogue, Role, plain_text
from steerbench.decoding import Thinking, check_thinking
from steerbench.errors import SteerbenchError
from steerbench.models.chat_template import TEMPLATE_DATE, ChatTemplate, marked
from steerbench.models.thought import Thought, thought_in

PLAIN_MARKERS = ("Human:", "Assistant:")
_PROBES: tuple[tuple[Role, ...], ...] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
)
_NAMES = {"661a58b4ca82": "813ce55fe248"}
"""Names that formats had in records before: of the testbed's, by the hash of what it writes."""


class PromptFormat:
    """Writes prompts for one tokenizer and knows how a reply begins and ends in them.

    Raises SteerbenchError for a chat template that does not show what a user says.
    """

    def __init__(self, tokenizer: Any, thinking: Thinking = "off") -> None:
        check_thinking(thinking)
        self.thinking = thinking
        self._tokenizer = tokenizer
        written = bool(tokenizer.chat_template)
        self._template = ChatTemplate(tokenizer, "the model's chat template", reply_follows=True) if written else None
        self.has_template = self._template is not None

    @cached_property
    def name(self) -> str:
        """Name of the format, for the protocol: `plain`, or the hash of what the chat template writes."""
        if self._template is None:
            return "plain-v1"
        written = [self._probe(roles, follows) for roles in _PROBES for follows in (True, False)]
        found = sha256(json.dumps([*written, self.opening]).encode()).hexdigest()[:12]
        return f"chat-template-{_NAMES.get(found, found)}"

    @property
    def key(self) -> dict[str, str]:
        """What the protocol's key says of the format: the date and the thoughts only where there are any."""
        dated = self._template is not None and self._template.shows_date
        return {
            "prompt_format": self.name,
            **({"prompt_date": TEMPLATE_DATE} if dated else {}),
            **({"thinking": self._told} if self.thought else {}),
        }

    @property
    def _told(self) -> Thinking:
        """What becomes of the thoughts: for a template that cannot leave them off, as it is told, or the same as off.

        Under `strip` and `off` answers alone are scored, so that equal prompts give equal scores.
        """
        if self.thinking != "strip":
            return self.thinking
        off = PromptFormat(self._tokenizer, "off")
        alike = (self.name, self.thought, self._written) == (off.name, off.thought, off._written)
        return "off" if alike else "strip"

    @property
    def _written(self) -> list[str | None]:
        """What prompts end with, an empty thought included."""
        found = [self._probe(roles, True) for roles in _PROBES]
        return [text and text + self._closed for text in found]

    def _probe(self, roles: tuple[Role, ...], reply_follows: bool) -> str | None:
        assert self._template is not None
        try:
            return self._template.text(marked(*roles), reply_follows=reply_follows, thinking=self._thinks)
        except SteerbenchError:
            return None

    def text(self, dialogue: Dialogue) -> str:
        """Return the prompt text, ending where the reply begins.

        Raises SteerbenchError where the chat template refuses the dialogue, or drops the text of a turn.
        """
        if self._template is None:
            return plain_text(dialogue)
        return self._template.text(dialogue, reply_follows=True, thinking=self._thinks) + self._closed

    @property
    def _thinks(self) -> bool:
        return self.thinking != "off"

    @cached_property
    def thought(self) -> Thought | None:
        """How the model marks its thoughts; None where it has none."""
        found = self._template and thought_in(self._template, self._special.values(), thinking=self._thinks)
        return found or None

    @property
    def opening(self) -> str:
        """What the prompt lacks before an answer that nobody thought about: an empty thought, or nothing."""
        return self.thought.empty if self.thought and self._thinks else ""

    @property
    def _closed(self) -> str:
        return self.thought.empty if self.thought and not self._thinks else ""

    @cached_property
    def reply_prefix(self) -> str:
        """What stands between the prompt, with the opening, and the reply, usually a blank or nothing."""
        if self._template is None:
            return " "
        before, _ = self._around_reply("user", "assistant", reply_follows=False)
        prompt = self.text(marked("user")) + self.opening
        return before.removeprefix(prompt) if before.startswith(prompt) else ""

    @cached_property
    def after_reply(self) -> str:
        """What stands between a reply and the text of the next user turn."""
        if self._template is None:
            return "\n\nHuman: "
        _, after = self._around_reply("user", "assistant", "user", reply_follows=True)
        return after.partition(marked("user", "assistant", "user")[2].text)[0]

    def _around_reply(self, *roles: Role, reply_follows: bool) -> tuple[str, str]:
        """Return what the template writes before and behind the first reply; nothing where it refuses the dialogue."""
        assert self._template is not None
        turns = marked(*roles)
        try:
            whole = self._template.text(turns, reply_follows=reply_follows, thinking=self._thinks)
        except SteerbenchError:
            return "", ""
        before, _, after = whole.partition(turns[1].text)
        return before, after

    @cached_property
    def end_of_turn_ids(self) -> list[int]:
        """Special tokens with which the template ends a last reply; a model may emit one in place of its EOS.

        Where it does not end one, those that end a past reply. What ends the past messages of a model with channels
        ends its other channels, too, and so no reply.
        """
        if self._template is None:
            return []
        last = self._first_special(self._around_reply("user", "assistant", reply_follows=False)[1])
        past = self._first_special(self.after_reply)
        if self.thought and self.thought.channel:
            return [i for i in last if i not in past]
        return last or past

    def _first_special(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"][:1]
        return [i for i in ids if i in self._special]

    @cached_property
    def _special(self) -> dict[int, str]:
        """All tokens marked as special; the tokenizer's `all_special_ids` are only those with a role, such as EOS."""
        return {i: token.content for i, token in self._tokenizer.added_tokens_decoder.items() if token.special}

    @cached_property
    def turn_markers(self) -> tuple[str, ...]:
        """Beginnings of a line that show a hallucinated next turn, in text formats such as `User:`."""
        if not self.has_template:
            return PLAIN_MARKERS
        text = self.after_reply
        for token in self._special.values():
            text = text.replace(token, "")
        tag = text.strip()
        return (tag,) if tag.endswith(":") else ()
