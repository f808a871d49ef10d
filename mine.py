"""Mine: say in one line what it does.

Paper: who, when, where. What is implemented, as a formula.

Differences from the authors' code (owner/name @commit): every one that is known.

Defaults: where they come from, and their units. Cost: what fit and every generated token take.

Pitfalls: what a user should know before trusting it. `steerbench list methods --long` prints this card.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Edit, PlacedEdit, Site
from steerbench.learn import contrast, difference_of_means, middle_layer


class Shift(Edit):
    """An operator h -> h'. The arguments of `__init__` are its whole state; tensors become buffers."""

    vector: Tensor

    def __init__(self, vector: Tensor, strength: float) -> None:
        super().__init__()
        self.register_buffer("vector", vector)
        self.strength = strength

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Return the edited activations; `h` is (batch, positions, width), float32, and must not be written to."""
        return h + self.strength * self.vector


@dataclass(frozen=True, kw_only=True)
class Mine(Steerer):
    """Fields are the hyperparameters: `--methods NAME:strength=2`."""

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}  # with these values the model is left as it is
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"strength": (0.25, 0.5, 1.0, 2.0, 4.0)}  # what --tune draws from

    strength: float = 1.0
    layer: int | None = None

    def fit(self, context: FitContext) -> Steering:
        """Learn from the train split: `context.pairs()`, `.rollouts()`, `.activations(...)`, `.reward`, `.lm`."""
        site = Site("resid_post", middle_layer(context.lm, self.layer))
        vector = difference_of_means(contrast(context, site, "response_mean"))
        return Steering(edits=(PlacedEdit(site, Shift(vector, self.strength), "response"),))
