"""A low-rank adapter as an edit: what is added to a state is a linear map of it, of small rank."""

from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from steerbench.steering.annotations import as_floats
from steerbench.steering.parts import Edit


class LowRank(Edit):
    """h + up @ down @ h; `down` is (rank, width), `up` (width, rank).

    At the input of a linear map W it is W + (W up) down, and at its output W + up (down W): an adapter of the weight.
    """

    down: Tensor
    up: Tensor

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.register_buffer("down", as_floats("down", down, 2))
        self.register_buffer("up", as_floats("up", up, 2))

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Add the map at every position."""
        return h + linear(linear(h, self.down), self.up)
