"""What a reward model reads: a dialogue with its reply as text and as tokens, and which of them are the reply's."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from steerbench.data.dialogue import Dialogue, Turn, plain_text
from steerbench.errors import SteerbenchError
from steerbench.models.batching import tokenize
from steerbench.models.chat_template import ChatTemplate

READ, REPLY = 1, 2
"""Marks of a token: it is read, and it is one of the reply's as well. Padding has the mark 0."""
_PROBE = "Qx0Zq"


class MarkedTokens(NamedTuple):
    """Token ids of texts, with a mark for each of them."""

    rows: list[list[int]]
    marks: list[list[int]]
    """`REPLY` for tokens that hold a part of the reply, `READ` for the others."""
    truncated: int
    """Number of texts that lost their beginning."""


class RewardText:
    """Dialogues with replies in the model's own chat template, or as `Human: ...` / `Assistant: ...` without one.

    Texts beyond a limit lose their beginning, so that the reply is always read.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        owner = f"the chat template of reward model {name!r}"
        written = bool(tokenizer.chat_template)
        self._template = ChatTemplate(tokenizer, owner, reply_follows=False) if written else None
        self.shows_date = self._template is not None and self._template.shows_date

    def text(self, dialogue: Dialogue, reply: str) -> str:
        """Write a dialogue and its reply."""
        if self._template is None:
            return plain_text(dialogue, reply)
        return self._template.text((*dialogue, Turn("assistant", reply)), reply_follows=False)

    def rows(self, texts: Sequence[str], limit: int | None) -> tuple[list[list[int]], int]:
        """Return the token ids of texts, at most `limit` each, and how many lost their beginning."""
        bare = self._template is None  # a template writes its special tokens itself
        tokens = tokenize(self._tokenizer, texts, limit=limit, cut="left", special_tokens=bare)
        return tokens.rows, tokens.truncated

    def marked(self, dialogues: Sequence[Dialogue], replies: Sequence[str], limit: int | None) -> MarkedTokens:
        """Return tokens and their marks. Raises SteerbenchError where the tokenizer does not say what a token holds."""
        if not self._tokenizer.is_fast:
            raise SteerbenchError(
                f"the tokenizer of {self._name!r} does not say where its tokens stand in a text; use a fast tokenizer."
            )
        options = {"add_special_tokens": self._template is None, "verbose": False, "return_offsets_mapping": True}
        self._tokenizer.truncation_side = "left"
        found = MarkedTokens([], [], 0)
        for dialogue, reply in zip(dialogues, replies, strict=True):
            text = self.text(dialogue, reply)
            coded = self._tokenizer(text, **options)
            if limit is not None and len(coded["input_ids"]) > limit:
                coded = self._tokenizer(text, truncation=True, max_length=limit, **options)
                found = found._replace(truncated=found.truncated + 1)
            start, stop = self._reply_span(dialogue, text)
            found.rows.append(coded["input_ids"])
            inside = (first < stop and last > start and last > first for first, last in coded["offset_mapping"])
            found.marks.append([REPLY if here else READ for here in inside])
        return found

    def _reply_span(self, dialogue: Dialogue, text: str) -> tuple[int, int]:
        """Return where the reply stands in a text, by what is written around another one."""
        before, _, after = self.text(dialogue, _PROBE).rpartition(_PROBE)
        return len(before), len(text) - len(after)
