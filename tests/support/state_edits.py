"""Edits that show whether a pass saw the states, and the prompts, that it should."""

from typing import Any

from torch import Tensor

from steerbench.edits import Edit


class Bent(Edit):
    """Depends on the state that it edits."""

    def forward(self, h: Tensor, state: Any) -> Tensor:
        return h + h.sin() * 2


class Mean(Bent):
    """Reads the prompt."""

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        return (prompt * mask[..., None]).sum(1, keepdim=True)
