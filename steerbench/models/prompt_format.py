"""How a dialogue becomes the text a language model sees: its own chat template, or a named plain format."""

import hashlib
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError

from steerbench.data.dialogue import Dialogue, Turn, plain_text, user
from steerbench.errors import SteerbenchError

_SENTINELS = ("Qx7Zq", "Rk9Vw", "Jm3Yp")
PLAIN_MARKERS = ("Human:", "Assistant:")
TEMPLATE_DATE = "26 Jul 2024"
"""What templates that show a date are given, Llama 3.1's own default: with today's, every day had another prompt."""


class PromptFormat:
    """Writes prompts for one tokenizer and knows how a reply begins and ends in them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.has_template = bool(tokenizer.chat_template)

    @cached_property
    def name(self) -> str:
        """Name of the format, for the protocol: `plain`, or the hash of the chat template."""
        if not self.has_template:
            return "plain-v1"
        template = str(self._tokenizer.chat_template)
        return f"chat-template-{hashlib.sha256(template.encode()).hexdigest()[:12]}"

    def text(self, dialogue: Dialogue) -> str:
        """Return the prompt text, ending where the reply begins.

        Raises SteerbenchError where the chat template refuses the dialogue.
        """
        if not self.has_template:
            return plain_text(dialogue)
        return self._render(self._fold_system(dialogue), reply_follows=True)

    @cached_property
    def reply_prefix(self) -> str:
        """What stands between the prompt and the reply, usually a blank or nothing."""
        if not self.has_template:
            return " "
        question, answer, _ = _SENTINELS
        whole = self._render((*user(question), Turn("assistant", answer)), reply_follows=False)
        prompt = self.text(user(question))
        return whole[len(prompt) : whole.index(answer)] if whole.startswith(prompt) and answer in whole else ""

    @cached_property
    def after_reply(self) -> str:
        """What stands between a reply and the text of the next user turn."""
        if not self.has_template:
            return "\n\nHuman: "
        question, answer, follow_up = _SENTINELS
        dialogue = (*user(question), Turn("assistant", answer), *user(follow_up))
        whole = self._render(dialogue, reply_follows=True)
        if answer not in whole or follow_up not in whole:
            return ""
        return whole[whole.index(answer) + len(answer) : whole.index(follow_up)]

    @cached_property
    def end_of_turn_ids(self) -> list[int]:
        """Special tokens with which the template ends a reply; a model may emit one in place of its EOS."""
        ids = self._tokenizer(self.after_reply, add_special_tokens=False)["input_ids"]
        return [ids[0]] if self.has_template and ids and ids[0] in self._special else []

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

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template shows a system turn; some refuse it and some drop it without a word."""
        dialogue = (Turn("system", _SENTINELS[1]), *user(_SENTINELS[0]))
        try:
            return _SENTINELS[1] in self._render(dialogue, reply_follows=True)
        except SteerbenchError:
            return False

    def _fold_system(self, dialogue: Dialogue) -> Dialogue:
        """Put system text in front of the first user turn where the template has no place for it."""
        if not dialogue or dialogue[0].role != "system" or self._takes_system:
            return dialogue
        system, first, *rest = dialogue
        return (Turn(first.role, f"{system.text}\n\n{first.text}"), *rest)

    def _render(self, dialogue: Dialogue, reply_follows: bool) -> str:
        messages = [{"role": turn.role, "content": turn.text} for turn in dialogue]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=reply_follows, date_string=TEMPLATE_DATE
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise SteerbenchError(f"the model's chat template refuses the dialogue: {error}") from error
        return str(text)
