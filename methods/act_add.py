"""ActAdd: add the difference between two short prompts, token by token, to the front of the user's prompt.

Paper: Turner et al., "Steering Language Models With Activation Engineering", arXiv 2308.10248.

    D = H(positive) - H(negative), (tokens, width), the shorter prompt padded with blanks to the length of the other
    h_i <- h_i + strength * D_(i - first),    first <= i < first + tokens

at the input of one block, in the prompt only. Nothing is learned from the task: this is CAA with one pair, by hand.

Differences from the authors' code: their form, as re-implemented in IBM/AISteer360 @1d7c843; positions behind the end
of a short prompt are left out.

Defaults: `Love` and `Hate`, layer 6 of 48 (GPT-2 XL) or the same depth in other models, strength 5, in units of D; from
position 1. Cost: two short forward passes to fit; only the prefill is edited.

Pitfalls: very sensitive to the words, the layer and the strength; with a chat template the front is the template; the
effect fades with the length of the prompt. A historic baseline.

On the testbed no strength comes to 0.05 nats per token: what is added at the front fades on the way to the response,
and at any strength the KL stays below 0.006. Gold changes by -0.10 on HH-RLHF (-0.33 to +0.13) and by -0.14 on SHP
(-0.21 to -0.07), not surely (five seeds, 96 test prompts); tuned by the guide with eight trials, by -0.09 and +0.01.

Learns from: nothing (two texts). Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, ClassVar

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import AddInFront, PlacedEdit, Site
from steerbench.learn import Layer, Tokens, Whole, block_at


@dataclass(frozen=True, kw_only=True)
class ActAdd(Steerer):
    """The difference of two prompts, at the positions of their tokens.

    - `strength`: in units of the difference of the two texts
    - `positive`, `negative`: the texts whose states are subtracted
    - `layer`: block from 0, or a share of the depth such as 0.4; None: 6/48 of the depth
    - `first`: position of the prompt, from 0, that the first token is added to
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "strength": (0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0),
        "layer": (0.0, 0.2, 0.4, 0.6, 0.8),
    }

    strength: float = 5.0
    positive: str = "Love"
    negative: str = "Hate"
    layer: Layer | None = None
    first: Whole = 1

    def fit(self, context: FitContext) -> Steering:
        """Subtract the states of the two prompts."""
        lm = context.lm
        blank = lm.tokenizer(" ", add_special_tokens=False)["input_ids"] or [lm.pad_id]
        both = [lm.text_tokens(text or " ").prompt for text in (self.positive, self.negative)]
        rows = [Tokens(row) for row in zip(*zip_longest(*both, fillvalue=blank[-1]), strict=True)]
        site = Site("resid_pre", block_at(lm, 6 / 48, self.layer))
        positive, negative = context.activations(site, rows, "all")
        return Steering(edits=(PlacedEdit(site, AddInFront(positive - negative, self.first, self.strength), "prompt"),))
