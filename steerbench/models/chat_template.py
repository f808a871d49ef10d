"""A chat template, as language and reward models write dialogues with it: every word, and the same on every day."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache, cached_property
from typing import Any

from jinja2.exceptions import TemplateError

from steerbench.data.dialogue import Dialogue, Role, Turn
from steerbench.errors import SteerbenchError

TEMPLATE_DATE = "26 Jul 2024"
"""What templates that show a date are given, Llama 3.1's own default: with today's, every day had another prompt."""

_NO_THINKING = {"enable_thinking": False, "thinking": False}
"""What templates ask for to leave thinking off: Qwen 3, GLM and SmolLM 3 the first, DeepSeek V3.1 and Granite the
second."""
_CODES = "aAbBcdDeFHIjmMpSTUwWxXyY"
_CLOCK = (  # transformers hands no function to a template, and its own `strftime_now` reads the clock
    "{%- macro strftime_now(format) -%}{%- set at = namespace(text=format) -%}"
    "{%- for code, value in fixed_date -%}{%- set at.text = at.text | replace(code, value) -%}{%- endfor -%}"
    "{{- at.text -}}{%- endmacro -%}"
)
_TRIES = 16
"""Two greetings, one of them drawn, are found out in all but one of 30,000 loads."""
_ERRORS = (TemplateError, TypeError, LookupError, ValueError, ArithmeticError, AttributeError, RecursionError)
_ORDINARY = 'Is 3 < 4 & 5 > 4?\n\n"It\'s so," said Zoë: see https://a.example/b?c=1#d.\n' * 40
"""What a template that cuts, escapes or changes texts does not show, though it shows single words."""


def marked(*roles: Role) -> Dialogue:
    """Return a dialogue whose turns are words that occur nowhere else."""
    return tuple(Turn(role, f"Qx{i}Zq") for i, role in enumerate(roles))


def is_whole(turn: Turn, written: str) -> bool:
    """Whether all that a turn says is written; templates may strip it, or join its lines."""
    return "".join(turn.text.split()) in "".join(written.split())


class ChatTemplate:
    """The chat template of a tokenizer, tried out with marked words.

    Texts are given as they are, or as lists of parts where the template shows them only so. System text stands in front
    of the first user turn where the template refuses or drops a system turn. What is still not shown is refused.
    """

    def __init__(self, tokenizer: Any, name: str, *, reply_follows: bool) -> None:
        """Try it on a prompt, or on one with its reply.

        Raises SteerbenchError, with `name` for the template, where it does not show their words.
        """
        self.name = name
        self._tokenizer = tokenizer
        self._reply_follows = reply_follows
        self._least: tuple[Role, ...] = ("user",) if reply_follows else ("user", "assistant")
        self._shown: set[tuple[tuple[Role, ...], bool]] = set()
        self._in_parts = self._n_shown(in_parts=True) > self._n_shown(in_parts=False)
        self._check_shown(self._least, reply_follows)
        long = [Turn(turn.role, f"{_ORDINARY}{turn.text}") for turn in marked(*self._least)]
        self._check_whole(long, self._write(tuple(long), reply_follows))
        if len({self._write(marked(*self._least), reply_follows) for _ in range(_TRIES)}) > 1:
            raise SteerbenchError(f"{name} writes another prompt each time; use one without anything random.")

    def text(self, dialogue: Dialogue, *, reply_follows: bool, thinking: bool = True) -> str:
        """Return the dialogue as text, ending where a reply begins if one follows.

        `thinking=False` tells the template to leave thinking off, where it can. Raises SteerbenchError where the
        template refuses the dialogue, or would drop the text of a turn. Of replies it may drop the thoughts.
        """
        folded = self._fold_system(dialogue)
        self._check_shown(tuple(turn.role for turn in folded), reply_follows)
        written = self._write(folded, reply_follows, thinking=thinking)
        self._check_whole([turn for turn in folded if turn.role == "user"], written)
        return written

    @cached_property
    def shows_date(self) -> bool:
        """Whether the date is in what the template writes."""
        words, follows = marked(*self._least), self._reply_follows
        return self._write(words, follows) != self._write(words, follows, date="1 Jan 1999")

    def _check_shown(self, roles: tuple[Role, ...], reply_follows: bool) -> None:
        """Raise SteerbenchError if a dialogue of these roles would lose words; each shape is tried once."""
        if (roles, reply_follows) in self._shown:
            return
        words = marked(*roles)
        text = self._write(words, reply_follows)
        lost = next((i for i, turn in enumerate(words) if turn.text not in text), None)
        if lost is not None:
            raise SteerbenchError(
                f"{self.name} drops the text of turn {lost + 1}, {roles[lost]}, of a dialogue of {', '.join(roles)}; "
                f"use another model, or dialogues without such turns."
            )
        places = [text.index(turn.text) for turn in words if turn.role != "system"]  # Mistral's stands in the last turn
        if places != sorted(places):
            raise SteerbenchError(f"{self.name} writes the turns in another order than they have; use another model.")
        self._shown.add((roles, reply_follows))

    def _check_whole(self, turns: Sequence[Turn], written: str) -> None:
        """Raise SteerbenchError if something that a turn says is not written."""
        if changed := next((turn for turn in turns if not is_whole(turn, written)), None):
            raise SteerbenchError(
                f"{self.name} cuts or changes the text of a turn, {changed.role}, that begins with "
                f"{changed.text[:20]!r}; use another model, or dialogues without such turns."
            )

    def _n_shown(self, *, in_parts: bool) -> int:
        """Count the marked words that are shown, with texts given as they are or in parts."""
        self._in_parts, shown = in_parts, 0
        for words in (marked(*self._least), marked("user", "assistant", *self._least)):
            try:
                text = self._write(words, self._reply_follows)
            except SteerbenchError:
                continue
            shown += sum(turn.text in text for turn in words)
        return shown

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template shows a system turn; some refuse it and some drop it without a word."""
        try:
            self._check_shown(("system", *self._least), self._reply_follows)
        except SteerbenchError:
            return False
        return True

    def _fold_system(self, dialogue: Dialogue) -> Dialogue:
        """Put system text in front of the first user turn where the template has no place for it."""
        if len(dialogue) < 2 or dialogue[0].role != "system" or self._takes_system:
            return dialogue
        system, first, *rest = dialogue
        return (Turn(first.role, f"{system.text}\n\n{first.text}"), *rest)

    def _write(
        self, dialogue: Dialogue, reply_follows: bool, *, thinking: bool = True, date: str = TEMPLATE_DATE
    ) -> str:
        try:
            source = str(self._tokenizer.get_chat_template())
            dated = {"chat_template": _CLOCK + source, "fixed_date": _date_codes(date)}
            text = self._tokenizer.apply_chat_template(
                self._messages(dialogue),
                tokenize=False,
                add_generation_prompt=reply_follows,
                date_string=date,
                **({} if thinking else _NO_THINKING),
                **(dated if "strftime_now" in source else {}),
            )
        except _ERRORS as error:
            reason = str(error).rstrip(".")
            raise SteerbenchError(f"{self.name} refuses the dialogue: {reason}. Use another model.") from error
        return str(text)

    def _messages(self, dialogue: Sequence[Turn]) -> list[dict[str, Any]]:
        if self._in_parts:
            return [{"role": t.role, "content": [{"type": "text", "text": t.text}]} for t in dialogue]
        return [{"role": turn.role, "content": turn.text} for turn in dialogue]


@cache
def _date_codes(date: str) -> tuple[tuple[str, str], ...]:
    """Return what the codes of strftime stand for on a date, at midnight."""
    day = datetime.strptime(date, "%d %b %Y")
    return (("%-d", str(day.day)), ("%-m", str(day.month)), *((f"%{c}", day.strftime(f"%{c}")) for c in _CODES))
