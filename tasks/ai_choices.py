"""Persona and AI-risk questions: two choices, one of which matches a behaviour.

Paper: Perez et al. 2022, "Discovering Language Model Behaviors with Model-Written Evaluations",
https://arxiv.org/abs/2212.09251. Licence: CC-BY-4.0. Files: https://github.com/anthropics/evals, at commit 84fcc67
`persona/*.jsonl` and `advanced-ai-risk/human_generated_evals/*.jsonl`, one file a behaviour.

One row (the words are invented, the shape is verbatim):

    {"question": "Would you hide a burnt loaf?\\n\\nChoices:\\n (A) Yes\\n (B) No",
     "answer_matching_behavior": " (B)", "answer_not_matching_behavior": " (A)"}

`matching` is the probability of the matching answer's letter, beside the other letter alone, as a reply to the
question: the mean of both orders of the choices, since a model that likes a letter likes it in both. Of each question,
`matching_log_odds` is the log of the odds, the mean of both orders as well. How far a steering moves them is the
question's steerability, and the share of questions that it moves down is `anti_steerable` (Tan et al. 2024, "Analyzing
the Generalization and Reliability of Steering Vectors", https://arxiv.org/abs/2407.12404).

One half of the questions is scored, and methods learn from the other half: `fold=0` and `fold=1` together score every
question once, and none with what was learned from it. A method that learns from pairs gets the letters as replies.

Known quirks:

- The files are on the Hub in `Anthropic/model-written-evals`, which has no configuration for each; give them with
  `--data`, a file or a folder that has it.
- Persona questions show no choices, and are answered by ` Yes` and ` No`: here they get `(A) Yes` and `(B) No`, as Tan
  et al. have it.
- The matching answer is (A) in exactly half of the questions of each file, and of persona questions Yes.
- The letters stand in the same order in the pairs as in the file: over many pairs they cancel.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from steerbench import Example, Task
from steerbench.data import Choices, Range, Unusable, text_field, user

_LISTED = re.compile(r"(?P<asked>.*?)\s*\n\s*Choices:\s*\n\s*\(A\)(?P<a>.*)\n\s*\(B\)(?P<b>.*)", re.DOTALL)
_THIRD = re.compile(r"\n\s*\(C\)")
_LETTERS = ("(A)", "(B)")
_PLAIN = ("Yes", "No")


@dataclass(frozen=True, kw_only=True)
class AIChoices(Task):
    """Questions about one behaviour, answered by (A) or (B) in both orders.

    - `behavior`: name of its file without the ending, such as `agreeableness` or `myopic-reward`
    - `fold`: which half of the questions is scored, 0 or 1
    """

    version = 1
    group_word = "question"
    needs_reward = False

    behavior: str
    fold: Annotated[int, Range(0, 1)] = 0

    def reads(self, name: str) -> bool:
        """Tell whether a file is that of the behaviour."""
        return name.rpartition("/")[2] == self.behavior

    def scored_half(self) -> int | None:
        """Return the half that is scored."""
        return self.fold

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Take the letter of the matching answer as the preferred reply, and the other letter as the other."""
        question = text_field(row, "question")
        asked, texts, names = _read(question)
        matching = _place(row, "answer_matching_behavior", names)
        if matching == _place(row, "answer_not_matching_behavior", names):
            raise Unusable("both answers are the same")
        right = tuple(i == matching for i in range(2))
        choices = (
            Choices("matching", _LETTERS, right),
            Choices("matching", _LETTERS, right[::-1], user(_shown(asked, texts[::-1]))),
        )
        name = hashlib.sha256(question.encode()).hexdigest()[:16]
        prompt = user(_shown(asked, texts))
        return Example(name, asked.lower(), prompt, _LETTERS[matching], _LETTERS[1 - matching], choices)


def _read(question: str) -> tuple[str, tuple[str, str], tuple[str, str]]:
    """Return what is asked, the texts of both choices, and what the file calls them."""
    listed = _LISTED.fullmatch(question)
    if listed is None and "Choices:" in question:
        raise Unusable("the choices are not (A) and (B), a line each")
    asked, a, b = (text.strip() for text in listed.group("asked", "a", "b")) if listed else (question, *_PLAIN)
    if _THIRD.search(b):
        raise Unusable("more than two choices")
    if not asked:
        raise Unusable("empty question")
    if not a or not b:
        raise Unusable("empty choice")
    if a == b:
        raise Unusable("equal choices")
    return asked, (a, b), _LETTERS if listed else _PLAIN


def _place(row: Mapping[str, Any], name: str, names: tuple[str, str]) -> int:
    answer = text_field(row, name)
    if answer not in names:
        raise Unusable(f"an answer is neither {names[0]} nor {names[1]}")
    return names.index(answer)


def _shown(asked: str, texts: tuple[str, ...]) -> str:
    """Write a question with its choices, as the files of advanced-ai-risk do."""
    return f"{asked}\n\nChoices:\n (A) {texts[0]}\n (B) {texts[1]}"
