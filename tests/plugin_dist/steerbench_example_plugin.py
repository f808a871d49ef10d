"""A method and a task as another distribution would ship them: they use nothing but what `steerbench` exports.

One row of the task:

    {"question": "Is rye bread sour?", "good": "Often.", "bad": "No idea."}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from steerbench import Example, FitContext, Steerer, Steering, Task
from steerbench.data import Unusable, user
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.learn import middle_layer


@dataclass(frozen=True, kw_only=True)
class ConstantShift(Steerer):
    """Adds one and the same vector, of mean zero and length one, to the output of one block."""

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}

    strength: float = 1.0
    layer: int | None = None

    def fit(self, context: FitContext) -> Steering:
        """Learn nothing: the vector is a ramp."""
        width = context.lm.model.config.get_text_config(decoder=True).hidden_size
        ramp = torch.linspace(-1, 1, width)
        site = Site("resid_post", middle_layer(context.lm, self.layer))
        return Steering(edits=(PlacedEdit(site, Add(ramp / ramp.norm(), self.strength)),))


class Toy(Task):
    """Questions, each with a good and a bad answer."""

    version = 1
    hub = "example/toy"
    hub_revision = "0" * 40

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Take the three texts as they are."""
        texts = [row.get(name) for name in ("question", "good", "bad")]
        if not all(isinstance(text, str) and text for text in texts):
            raise Unusable("missing text")
        question, good, bad = map(str, texts)
        return Example(question, question, user(question), good, bad)
