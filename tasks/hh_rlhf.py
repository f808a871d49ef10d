r"""HH-RLHF: pairs of replies to a dialogue, the better one chosen by crowd workers.

Paper: Bai et al. 2022, "Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback",
https://arxiv.org/abs/2204.05862. Licence: MIT. Card: https://huggingface.co/datasets/Anthropic/hh-rlhf

One row (the words are invented, the shape is verbatim):

    {"chosen": "\n\nHuman: Is rye bread sour?\n\nAssistant: Often.\n\nHuman: Why?\n\nAssistant: Because of the leaven.",
     "rejected": "\n\nHuman: Is rye bread sour?\n\nAssistant: Often.\n\nHuman: Why?\n\nAssistant: No idea."}

Known quirks, with their number in the 2,312 pairs of harmless-base/test:

- 5 pairs differ before the last assistant turn (one side has one assistant turn more): skipped.
- 4 other pairs have an empty reply: skipped.
- 2 prompts stand twice: one of the two records is skipped.
- 4 prompts have two assistant turns in a row: they are joined, because many chat templates refuse them.
- "Human:" stands 107 times inside a line, where it is text and not a turn.
- Many dialogues open with the same question: they stay in one split. The dialogues are offensive by design.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from steerbench.data.dialogue import Dialogue, merge, parse_hh
from steerbench.data.task import Example, Task, Unusable, text_field

_FOLDERS: Final = {
    "helpful": ("helpful-base", "helpful-online", "helpful-rejection-sampled"),
    "harmless": ("harmless-base",),
}
"""Of the data set on the Hub."""


@dataclass(frozen=True, kw_only=True)
class HHRLHF(Task):
    """Helpful and harmless dialogues; the prompt is all before the last assistant turn.

    - `criterion`: `helpful` or `harmless` reads the dialogues whose replies were chosen by that alone
    """

    version = 1
    hub = "Anthropic/hh-rlhf"
    hub_revision = "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"
    group_word = "opening"

    criterion: Literal["both", "helpful", "harmless"] = "both"

    def reads(self, name: str) -> bool:
        """Tell whether a file, or a folder that it is in, is called by the criterion."""
        return self.criterion == "both" or any(part.startswith(self.criterion) for part in name.split("/"))

    def hub_folders(self) -> Sequence[str]:
        """Return the folders of the criterion."""
        return _FOLDERS.get(self.criterion, ())

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Split both texts at the last assistant turn; what stands before must be the same."""
        texts = text_field(row, "chosen"), text_field(row, "rejected")
        (prompt, chosen), (other, rejected) = map(_split, texts)
        if prompt != other:
            raise Unusable("diverges before the last turn")
        _check(prompt, chosen, rejected)
        opening = " ".join(prompt[0].text.lower().split())
        name = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
        return Example(name, opening, merge(prompt), chosen, rejected)


def _split(text: str) -> tuple[Dialogue, str]:
    try:
        *prompt, last = parse_hh(text)
    except ValueError as error:
        raise Unusable("not a dialogue") from error
    if last.role != "assistant":
        raise Unusable("does not end in a reply")
    return tuple(prompt), last.text


def _check(prompt: Dialogue, chosen: str, rejected: str) -> None:
    if prompt[-1].role != "user":
        raise Unusable("reply follows no user turn")
    if not all(turn.text for turn in prompt):
        raise Unusable("empty turn")
    if not chosen or not rejected:
        raise Unusable("empty reply")
    if chosen == rejected:
        raise Unusable("equal replies")
