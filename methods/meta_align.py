"""MetaAlign at test time: name the preferences that count, in their order, in a meta-prompt.

Paper: Zhang et al., "MetaAlign: Align Large Language Models with Diverse Preferences during Inference Time", 2024,
arXiv 2410.14184.

    dialogue -> (system: you follow these preferences, the first before the others: 1. ... 2. ... 3. ..., dialogue)

The paper trains a model on 38,900 dialogues to follow such texts, whatever stands in them. That half is out of reach of
a method that leaves the model frozen, and no weights are released: what is measured is how far a model that never
saw a meta-prompt follows one. The wordings are ours.

Differences from the authors' code (Jihuai-wpy/MetaAlign @b340ffa, a README alone): no training; preferences are named
as principles, one line each, where theirs have three levels, from roles to examples.

Defaults: helpful before harmless before polite. Cost: nothing to fit; prefill of about 40 more tokens.

Pitfalls: without the training a small model does not weigh the order, and a base model may not take a list for
an instruction at all.

On the testbed (five seeds, 96 test prompts) it gains +0.68 of gold on HH-RLHF and +0.65 on SHP, surely, at 0.017 nats
per token that nothing moves, where single instructions gain 2; tuned, +0.69 and +0.77. Why not more has not been looked
into; its model was trained on no lists of preferences.

Learns from: nothing. Touches: prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Instruction

OPENING = "Follow these preferences, an earlier one before a later one."
PRINCIPLES = {
    "helpful": "Serve the goal of the one who asks.",
    "harmless": "Harm nobody, and warn of risks.",
    "honest": "Say only what is true.",
    "polite": "Open and close with a kind word.",
    "detailed": "Go through every step.",
    "concise": "Leave out what is not needed.",
}


@dataclass(frozen=True, kw_only=True)
class MetaAlign(Steerer):
    """Up to three preferences, in a meta-prompt.

    - `first`: the preference that counts most
    - `second`: the next one
    - `third`: the one after that
    """

    off: ClassVar[Mapping[str, Any]] = {"first": "none", "second": "none", "third": "none"}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "first": ("helpful", "harmless", "honest", "polite", "detailed", "concise"),
        "second": ("none", "helpful", "harmless", "polite", "detailed"),
        "third": ("none", "harmless", "polite", "detailed"),
    }

    first: Literal["none", "helpful", "harmless", "honest", "polite", "detailed", "concise"] = "helpful"
    second: Literal["none", "helpful", "harmless", "honest", "polite", "detailed", "concise"] = "harmless"
    third: Literal["none", "helpful", "harmless", "honest", "polite", "detailed", "concise"] = "polite"

    def fit(self, context: FitContext) -> Steering:
        """Return the prompt part; nothing is learned."""
        named = [name for name in dict.fromkeys((self.first, self.second, self.third)) if name != "none"]
        lines = [f"{i}. {PRINCIPLES[name]}" for i, name in enumerate(named, start=1)]
        return Steering(prompt=(Instruction("\n".join([OPENING, *lines]) if named else ""),))
