"""Edit operators that act on the component of a state along directions, shared by methods. Directions are unit rows."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from steerbench.errors import SteerbenchError, suggest
from steerbench.steering.annotations import as_floats
from steerbench.steering.parts import Edit, RankedEdit

Form = Literal["tanh", "relu", "add"]


def _unit(direction: Tensor) -> Tensor:
    """Scale to length 1, (width,); one that has it stays as it is, bit for bit, also when it comes from a file."""
    return direction if abs(float(direction.norm()) - 1) < 1e-6 else normalize(direction, dim=0)


class Ablate(Edit):
    """h - strength * (<h, r> - target) r: at strength 1 the component along r becomes `target`.

    `direction` r is (width,), scaled to length 1; `target` is in the units of the state, 0 for directional ablation.
    """

    direction: Tensor
    """(width,), float32"""

    def __init__(self, direction: Tensor, target: float = 0.0, strength: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("direction", _unit(as_floats("direction", direction, 1)))
        self.target = target
        self.strength = strength

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Move the component at every position."""
        surplus = h @ self.direction - self.target
        return h - self.strength * surplus[..., None] * self.direction


class RemoveBoost(Edit):
    """Remove the component along one direction, then boost the one along another by its projection.

    x <- h - strength * g(<h, remove>) remove, then x + strength * g(<x, boost>) boost. Both are (width,), scaled to
    length 1. g is max(., 0) where `one_sided`, so that only what leans to a direction counts, and else the identity.
    """

    remove: Tensor
    boost: Tensor

    def __init__(self, remove: Tensor, boost: Tensor, strength: float = 1.0, one_sided: bool = True) -> None:
        super().__init__()
        if remove.shape != boost.shape:
            raise ValueError(f"remove has the shape {tuple(remove.shape)}, and boost {tuple(boost.shape)}")
        self.register_buffer("remove", _unit(as_floats("remove", remove, 1)))
        self.register_buffer("boost", _unit(as_floats("boost", boost, 1)))
        self.strength = strength
        self.one_sided = one_sided

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Remove and boost at every position."""
        h = h - self.strength * self._component(h, self.remove) * self.remove
        return h + self.strength * self._component(h, self.boost) * self.boost

    def _component(self, h: Tensor, direction: Tensor) -> Tensor:
        length: Tensor = (h @ direction)[..., None]
        return torch.relu(length) if self.one_sided else length


class Gated(RankedEdit):
    """h + strength * sum of gates * directions, over those directions that a query lets through.

    `directions` T is (k, width), orthonormal. With s = <h, t> for each row t, and q the query:

    - `tanh`: gate step * tanh(s / step), for rows with cos(q, t) <= 0
    - `relu`: gate -max(s, 0), for rows with cos(q, t) > 0
    - `add`: gate step, for rows with cos(q, t) <= 0

    `step` is in the units of the state. `filtered=False` lets all rows through. The score of a query is the length of
    the projection of q / |q| onto the rows that it lets through; of one `contest`, the `keep` edits with the highest
    score act on its row.
    """

    directions: Tensor
    """(k, width), float32"""

    def __init__(
        self,
        directions: Tensor,
        strength: float = 1.0,
        form: Form = "tanh",
        filtered: bool = True,
        contest: str = "",
        keep: int = 5,
        step: float = 1.0,
    ) -> None:
        super().__init__()
        if step <= 0:
            raise SteerbenchError(f"step={step} of an edit moves nothing; give a number above 0.")
        if form not in get_args(Form):
            raise SteerbenchError(suggest("form of an edit", form, list(get_args(Form))))
        self.register_buffer("directions", as_floats("directions", directions, 2))
        self.strength = strength
        self.form = form
        self.filtered = filtered
        self.contest = contest
        self.keep = keep
        self.step = step

    def score(self, query: Tensor) -> Tensor:
        """Return the length of the projection of each query, (rows, width), onto what it lets through, (rows,)."""
        length: Tensor = (self._cosines(query) * self._open(query)).norm(dim=-1)
        return length

    def begin(self, query: Tensor, chosen: Tensor) -> Tensor:
        """Return 1 where a direction acts on a row and 0 elsewhere, (rows, k), float32."""
        return self._open(query) * chosen[:, None]

    def forward(self, h: Tensor, state: Tensor) -> Tensor:
        """Edit every position with the directions of its row."""
        gates = state[:, None] * self.strength * self._gates(h @ self.directions.T)
        return h + gates @ self.directions

    def _gates(self, s: Tensor) -> Tensor:
        if self.form == "add":
            return torch.full_like(s, self.step)
        return self.step * torch.tanh(s / self.step) if self.form == "tanh" else -torch.relu(s)

    def _cosines(self, query: Tensor) -> Tensor:
        return normalize(query, dim=-1) @ self.directions.T

    def _open(self, query: Tensor) -> Tensor:
        cosines = self._cosines(query)
        if not self.filtered:
            return torch.ones_like(cosines)
        let_through: Tensor = cosines > 0 if self.form == "relu" else cosines <= 0
        return let_through.float()
