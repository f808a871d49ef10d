"""MMLU, massive multitask language understanding: 57 subjects, four choices a question.

Paper: Hendrycks et al. 2021, "Measuring Massive Multitask Language Understanding", https://arxiv.org/abs/2009.03300.
Licence: MIT. Card: https://huggingface.co/datasets/cais/mmlu

One row as published, without a line that names the columns (the words are invented, the shape is verbatim):

    "Which of these is leavened?","Rye bread","Matzo","Roti","Tortilla",A

and the same as the Hub has it:

    {"question": "Which of these is leavened?", "subject": "baking", "choices": ["Rye bread", "Matzo", "Roti",
     "Tortilla"], "answer": 0}

`accuracy` is the share of questions whose right choice is the likeliest reply to the question alone. The texts of the
choices are scored and not their letters: small models are near chance by letter. As a capability check of another
task's study, `--capability mmlu` gives the column `damage`.

Known quirks:

- The published score shows the choices with letters behind five worked questions: it is another number than this one.
- A log-likelihood is a sum over tokens, so short choices are favoured, in every method alike.
- Where one choice begins another, the shorter one is likelier whatever the model knows; such questions, 232 of 14,364
  in the early files, are left out and counted.
- The Hub's `auxiliary_train`, of other data sets, is the train split there; files of `dev` and `test` alone are pooled.
- Many questions ask about `the following`, which are the choices that are not shown.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerbench import Example, Task
from steerbench.data import Choices, Unusable, field_of, text_field, user

_LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True, kw_only=True)
class MMLU(Task):
    """Questions as one user turn, with the texts of their four choices."""

    version = 1
    hub = "cais/mmlu"
    hub_revision = "c30699e8356da336a370243923dbaf21066bb9fe"
    hub_config = "all"
    group_word = "question"
    needs_reward = False
    csv_columns = ("question", *_LETTERS, "answer")

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Take the right choice as the preferred reply, and the first wrong one in alphabetical order."""
        question, texts = text_field(row, "question"), _texts(row)
        if not question:
            raise Unusable("empty question")
        if len(texts) != len(_LETTERS) or not all(texts):
            raise Unusable("not four choices with a text each")
        if len(set(texts)) < len(texts):
            raise Unusable("equal choices")
        if any(one != other and other.startswith(one) for one in texts for other in texts):
            raise Unusable("a choice begins another one")
        answer = _answer(row)
        wrong = min(text for i, text in enumerate(texts) if i != answer)
        name = hashlib.sha256("\0".join((question, *texts)).encode()).hexdigest()[:16]
        right = tuple(i == answer for i in range(len(texts)))
        choices = (Choices("accuracy", texts, right),)
        return Example(name, question.lower(), user(question), texts[answer], wrong, choices)


def _texts(row: Mapping[Any, Any]) -> tuple[str, ...]:
    """Read the Hub's list, or the four columns of a file."""
    if None in row:
        raise Unusable("more than six columns")
    if "choices" not in row:
        return tuple(text_field(row, letter) for letter in _LETTERS)
    texts = field_of(row, "choices")
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise Unusable("wrong type")
    return tuple(text.strip() for text in texts)


def _answer(row: Mapping[str, Any]) -> int:
    """Read a letter, or a number from 0."""
    answer = field_of(row, "answer")
    if isinstance(answer, str) and answer.strip() in _LETTERS:
        return _LETTERS.index(answer.strip())
    if answer in range(len(_LETTERS)) and not isinstance(answer, bool):
        return int(answer)
    raise Unusable("the answer is neither a letter A to D nor a number 0 to 3")
