"""Which prompt and which position each token of a packed step belongs to, and which tokens a scope means."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from steerbench.steering.parts import Scope


@dataclass(frozen=True)
class PackedStep:
    """The tokens of several sequences one behind another, without padding, as an engine with a paged cache runs them.

    Positions are absolute, so that a prompt may come in pieces, and a sequence that was put off may begin again.
    """

    prompts: Tensor
    """Number of the prompt that each token belongs to, (tokens,)."""
    positions: Tensor
    """In its sequence, from 0, (tokens,)."""
    ends: Tensor
    """Length of its prompt, (tokens,)."""

    @classmethod
    def of(cls, starts: Tensor, lengths: Tensor, prompts: Tensor, ends: Tensor) -> Self:
        """Lay out a step.

        `starts` (sequences + 1,) says where the tokens of each sequence begin and end, `lengths` (sequences,) how long
        each is with the tokens of this step; `prompts` and `ends` are by sequence.
        """
        new = starts[1:] - starts[:-1]
        row = torch.repeat_interleave(torch.arange(len(new), device=starts.device), new)
        offset = torch.arange(len(row), device=starts.device) - starts[:-1][row]
        return cls(prompts[row], (lengths - new)[row] + offset, ends[row])

    def at(self, tokens: Tensor) -> "PackedStep":
        """Return some of the tokens."""
        return PackedStep(self.prompts[tokens], self.positions[tokens], self.ends[tokens])

    def mask(self, scope: Scope) -> Tensor:
        """Return which tokens are in a scope, (tokens, 1)."""
        if scope == "all":
            inside = torch.ones_like(self.positions, dtype=torch.bool)
        else:
            inside = self.positions < self.ends if scope == "prompt" else self.positions >= self.ends - 1
        return inside[:, None]
