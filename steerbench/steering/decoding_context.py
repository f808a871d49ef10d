"""What logits and decode parts are given: the batch that is decoded, other models, the reward, and passes of their own.

It is to decoding what `FitContext` is to learning.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from steerbench.data.dialogue import Dialogue
from steerbench.errors import SteerbenchError
from steerbench.models.language_model import LanguageModel
from steerbench.models.reward import Reward
from steerbench.steering.step import Step


@dataclass(frozen=True, kw_only=True)
class DecodingContext:
    """One batch that is being decoded or scored, and all that a part may guide it with.

    While a part is asked, the model runs without the steering's edits, in decoding as in scoring. A pass of the model
    that is to be edited says so, `with context.steered(ids, mask):`.
    """

    lm: LanguageModel
    """The model that is steered, frozen."""
    prompt_ids: Tensor
    """(rows, columns), left padded."""
    mask: Tensor
    """(rows, columns): 1 where the prompt is real, 0 in padding."""
    models: Mapping[str, LanguageModel]
    """The models that the part names, by their role, on the device and in the data type of `lm`."""
    generators: Sequence[torch.Generator] = ()
    """One on the CPU for each row, that draws what no other part draws. None where a given response is scored."""
    steered: Callable[[Tensor, Tensor], AbstractContextManager[Any]]
    """`steered(ids, mask)`: the model is edited inside, as it is in decoding.

    Both are (rows, columns), prompts padded as in `prompt_ids`, of any number of rows: what the first pass gets. The
    passes that follow inside continue it with its cache.
    """
    unsteered: Callable[[], AbstractContextManager[None]]
    """`unsteered()`: the model is as it was loaded inside, also where that stands inside of `steered`."""
    step: Callable[[Tensor, Tensor], Step]
    """`step(ids, logits)`: what there is to score the next tokens by; what a processor gets, of the batch."""
    _dialogues: Sequence[Dialogue] | None = field(default=None)
    _reward: Reward | None = field(default=None)

    def row(self, i: int) -> "DecodingContext":
        """Return the context of one row, padded as the batch is."""
        return self.rows([i])

    def rows(self, rows: Sequence[int]) -> "DecodingContext":
        """Return the context of some rows, padded as the batch is."""
        chosen = list(rows)
        return replace(
            self,
            prompt_ids=self.prompt_ids[chosen],
            mask=self.mask[chosen],
            generators=[self.generators[i] for i in chosen] if self.generators else (),
            _dialogues=None if self._dialogues is None else [self._dialogues[i] for i in chosen],
        )

    @property
    def dialogues(self) -> Sequence[Dialogue]:
        """The dialogue of each row, before the steering's own prompts. Raises SteerbenchError where none were given."""
        if self._dialogues is None:
            raise SteerbenchError("this steering reads the dialogues whose responses it scores; give `dialogues`.")
        return self._dialogues

    @property
    def reward(self) -> Reward:
        """The guiding reward. Raises SteerbenchError where none was given."""
        if self._reward is None:
            raise SteerbenchError("this steering is guided by a reward model; give one.")
        return self._reward
