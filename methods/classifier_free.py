"""Classifier-free guidance by a system prompt: further in the direction in which a prompt moves the next token.

Paper: Sanchez et al. 2023, "Stay on topic with Classifier-Free Guidance", ICML 2024, arXiv 2306.17806.

    log p(z)  =  log p_0(z | x) + scale * (log p_0(z | prompt, x) - log p_0(z | x))    + constant

Scale 0 is the model, 1 the model with the prompt (`static_prompt`), and more exaggerates what the prompt does. Both are
rows of one batch, which read the same response: twin rows of the same pass.

Differences from the paper: the contrast is a system prompt, with against without, as in its section on assistants. The
unconditional side there is the last token of the prompt alone; here it is the whole dialogue without the system text.

Defaults: the text of `static_prompt`, scale 1.5 as in the paper. Cost: nothing to fit; twice as many rows in each pass,
with prefill of the text, which where decoding is bound by reading weights takes little more than one.

Pitfalls: large scales push out what both sides find natural, and texts turn odd; the words of the prompt decide.
Composed with edits, both sides are edited; with other prompts, both have them.

Learns from: nothing. Touches: logits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from steerbench import FitContext, Steerer, Steering
from steerbench.data import Dialogue, Turn
from steerbench.edits import PromptPart, Reweighting, Step, Twin

TEXT = (
    "A question from a curious user and an answer from an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user’s questions."
)


class WithText(PromptPart):
    """Puts a text into the system turn, behind what already stands there."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, dialogue: Dialogue) -> Dialogue:
        """Return the dialogue with the text."""
        if dialogue and dialogue[0].role == "system":
            return (Turn("system", f"{dialogue[0].text}\n\n{self.text}"), *dialogue[1:])
        return (Turn("system", self.text), *dialogue)


class Prompted(Reweighting):
    """What a system text adds to each log-probability."""

    def __init__(self, text: str, beta: float) -> None:
        self.text, self.beta = text, beta

    @property
    def twin(self) -> Twin | None:
        """The model behind the dialogue with the text."""
        return Twin(prompt=(WithText(self.text),)) if self.beta and self.text else None

    def score(self, step: Step, tokens: Tensor) -> Tensor:
        """Return the difference of both sides, (rows, vocabulary)."""
        if not self.text:
            return step.logits.new_zeros(step.logits.shape)
        return step.logits_of_twin().log_softmax(-1) - step.logits.log_softmax(-1)


@dataclass(frozen=True, kw_only=True)
class ClassifierFree(Steerer):
    """Guidance by a system prompt.

    - `text`: of the system turn
    - `scale`: 0 is the model without it, 1 with it
    """

    engines = ("transformers",)
    off: ClassVar[Mapping[str, Any]] = {"scale": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"scale": (0.5, 1.0, 1.25, 1.5, 2.0, 3.0)}

    text: str = TEXT
    scale: float = 1.5

    def fit(self, context: FitContext) -> Steering:
        """Nothing to learn."""
        return Steering(logits=(Prompted(self.text, self.scale),))
