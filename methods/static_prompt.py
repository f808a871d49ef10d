"""One fixed instruction before the unchanged dialogue: the "Prompting" row of RE-Control.

Paper: Kong et al. 2024, arXiv 2406.05954. The default is the text in the authors' code (Lingkai-Kong/RE-Control
@f897869, `inference_intervention.py`, defined there and never used); the paper's own wording is not known. It is the
system line of Vicuna's training format, so on Vicuna part of its gain is the restored format.

Differences from that code: the text goes in as a system turn, which the model's chat template places (in front of the
first user turn where the template has no system turn), and it is added once, also when the method is composed.

Defaults: the text above; there is nothing to tune. Cost: nothing to fit, prefill of about 30 more tokens.

Pitfalls: the words decide, and one text is one draw: a benchmark without a good prompt is not credible. Compose it with
other methods instead of writing it into the data, or it is there twice.

Learns from: nothing. Touches: prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Instruction

RE_CONTROL = (
    "A question from a curious user and an answer from an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user’s questions."
)


class SystemText(Instruction):
    """Puts a text into the system turn; saved under this name."""


@dataclass(frozen=True, kw_only=True)
class StaticPrompt(Steerer):
    """A fixed system text.

    - `text`: the system turn; empty: none
    """

    off: ClassVar[Mapping[str, Any]] = {"text": ""}

    text: str = RE_CONTROL

    def fit(self, context: FitContext) -> Steering:
        """Return the prompt part; nothing is learned."""
        return Steering(prompt=(SystemText(self.text),))
