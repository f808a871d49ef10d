"""TruthfulQA, multiple choice: questions that people answer wrongly, with true and false answers.

Paper: Lin, Hilton and Evans 2022, "TruthfulQA: Measuring How Models Mimic Human Falsehoods",
https://arxiv.org/abs/2109.07958. Licence: Apache-2.0. Card: https://huggingface.co/datasets/truthfulqa/truthful_qa

One row of `mc_task.json` (the words are invented, the shape is verbatim):

    {"question": "Does rye bread cure a cold?", "mc1_targets": {"No, it does not.": 1, "Yes, overnight.": 0},
     "mc2_targets": {"No, it does not.": 1, "Nothing cures a cold.": 1, "Yes, overnight.": 0}}

MC1 is the share of questions whose one true answer in `mc1_targets` is the most likely of them. MC2 is the probability
of the true answers in `mc2_targets` among all of these. A method that learns from pairs gets the true answer of MC1 and
a false one. ITI's authors fit on one half of the questions and score the other, and the other way round: `fold=0` and
`fold=1`.

Known quirks, in the 817 questions of October 2021:

- Every question has one true answer in `mc1_targets`, the first: nothing may depend on the order.
- The paper scores answers behind six worked questions; here a question is one user turn in the model's own format.
- Rows of the Hub hold `choices` and `labels` in place of a map; both are read.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from steerbench.data.dialogue import user
from steerbench.data.task import Choices, Example, Task, Unusable, field_of, text_field
from steerbench.plugins.ranges import Range


@dataclass(frozen=True, kw_only=True)
class TruthfulQA(Task):
    """Questions as one user turn, with the choices of MC1 and MC2.

    - `fold`: which half of the questions is scored, 0 or 1, the other one being learned from; None: 30 % are scored
    """

    version = 1
    hub = "truthfulqa/truthful_qa"
    hub_revision = "741b8276f2d1982aa3d5b832d3ee81ed3b896490"
    hub_config = "multiple_choice"
    group_word = "question"
    needs_reward = False

    fold: Annotated[int, Range(0, 1)] | None = None

    def scored_half(self) -> int | None:
        """Return the half that is scored."""
        return self.fold

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Take the true answer of MC1 as the preferred reply, and its first false one in alphabetical order."""
        question = text_field(row, "question")
        if not question:
            raise Unusable("empty question")
        mc1, mc2 = _choices("mc1", row), _choices("mc2", row)
        if sum(mc1.right) != 1:
            raise Unusable("mc1 has not one true answer")
        chosen = mc1.texts[mc1.right.index(True)]
        rejected = min(text for text, right in zip(mc1.texts, mc1.right, strict=True) if not right)
        name = hashlib.sha256(question.encode()).hexdigest()[:16]
        return Example(name, question, user(question), chosen, rejected, (mc1, mc2))


def _choices(kind: str, row: Mapping[str, Any]) -> Choices:
    """Read a map of answer to 0 or 1, or the Hub's two lists."""
    targets = field_of(row, f"{kind}_targets")
    if not isinstance(targets, Mapping):
        raise Unusable("wrong type")
    if "choices" in targets and "labels" in targets:
        targets = dict(zip(targets["choices"], targets["labels"], strict=True))
    texts = tuple(str(text).strip() for text in targets)
    right = tuple(bool(label) for label in targets.values())
    if not all(texts) or len(set(right)) < 2:
        raise Unusable(f"{kind} lacks true or false answers")
    return Choices(kind, texts, right)
