"""The least that decoding under a steering could cost beside the unsteered model, if moving bytes took all the time.

For each token a decoding step reads the weights once, whatever the batch, and the keys and values of all columns so
far, row by row. What a part makes it read besides, it declares: `docs/latency.md` has the formula, and the functions
below one line of it for each kind of part. Arithmetic counts nothing, and neither does what one pass leaves for the
next in a processor's own memory.
"""

import inspect
from collections.abc import Sequence
from math import ceil
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from steerbench.data.dialogue import Dialogue
from steerbench.engine.forward_passes import CACHE, run
from steerbench.engine.guidance import loaded
from steerbench.engine.prompting import prompted
from steerbench.engine.sequences import can_repeat
from steerbench.models.language_model import LanguageModel
from steerbench.models.modes import evaluating
from steerbench.models.reward import Reward
from steerbench.models.weights import weight_bytes
from steerbench.steering.parts import DecodePart, LogitsPart, Part
from steerbench.steering.reweighting import Reweighting
from steerbench.steering.steering import Steering

_columns: "WeakKeyDictionary[PreTrainedModel, dict[torch.dtype, float]]" = WeakKeyDictionary()


class _Batch(NamedTuple):
    """What is decoded, for one steering."""

    lm: LanguageModel
    dialogues: Sequence[Dialogue]
    steering: Steering
    reward: Reward | None
    new: int

    def columns(self, steering: Steering) -> float:
        """Return how many columns all rows have together behind the prompts of a steering, on average over a step."""
        prompts = [len(self.lm.tokens(d).prompt) for d in prompted(self.lm, steering, self.dialogues)]
        return sum(prompts) + len(prompts) * self.new / 2

    @property
    def own(self) -> float:
        """Bytes that the passes of one step read."""
        columns = self.columns(self.steering)
        if (part := self.steering.decode) is not None:
            columns += len(self.dialogues) * (part.candidates - 1) * _drawn(part, self.new) / 2
        return weight_bytes(self.lm.model) + _column_bytes(self.lm) * columns


@torch.no_grad()
def decode_floor(
    lm: LanguageModel, steering: Steering, dialogues: Sequence[Dialogue], reward: Reward | None, new_tokens: int
) -> float:
    """Return bytes moved for each token beside those of the unsteered model, 1.0 or more.

    For one batch of `dialogues` and `new_tokens` of each row, as `generate_fixed` decodes them.
    """
    moved, plain = (_moved(_Batch(lm, dialogues, s, reward, new_tokens)) for s in (steering, Steering()))
    return moved / plain


def _moved(batch: _Batch) -> float:
    steering = batch.steering
    edits = sum(_tensor_bytes(p.edit) for p in steering.edits if p.scope != "prompt")  # their tensors, once
    total = batch.own + edits + sum(_of_logits(part, batch) for part in steering.logits)
    return total if steering.decode is None else _of_choice(steering.decode, total, batch)


def _of_logits(part: LogitsPart, batch: _Batch) -> float:
    """Its tensors, what reads along on a cache of its own, another pass for states ahead, and the guide."""
    total, lm = float(_tensor_bytes(part)), batch.lm
    total += _reward_bytes(batch.reward) if part.asks_reward else 0
    if not isinstance(part, Reweighting):
        return total
    if not part.beta:
        return 0
    for name in part.models.values():
        guide = loaded(name, lm.device, lm.dtype, lm.format.thinking)
        total += weight_bytes(guide.model) + _column_bytes(guide) * batch.columns(batch.steering)
    if (twin := part.twin) is not None:
        total += _column_bytes(lm) * batch.columns(Steering(prompt=(*batch.steering.prompt, *twin.prompt)))
    return total + (batch.own if part.looks_ahead else 0)


def _of_choice(part: DecodePart, step: float, batch: _Batch) -> float:
    """All of a step as often as tokens are drawn for one that is kept, and the guide at each choice but the first."""
    block = part.blocks.tokens or batch.new
    choices = (ceil(batch.new / block) - 1) / max(batch.new - 1, 1)
    asked = _reward_bytes(batch.reward) if part.asks_reward else 0
    return step * (1 + part.blocks.lookahead / block) + choices * (asked + _tensor_bytes(part))


def _drawn(part: DecodePart, new: int) -> int:
    """Return how many columns a candidate has of its own, at the end of its block: one at least."""
    blocks = part.blocks
    return 1 if blocks.ragged else min(blocks.tokens or new, new) + blocks.lookahead


def _reward_bytes(reward: Reward | None) -> int:
    """Return the bytes of a reward's weights that a call reads."""
    return 0 if reward is None else reward.weight_bytes


def _tensor_bytes(part: Part) -> int:
    """Return the bytes of the tensors among a part's arguments, which are its whole state."""
    values = [getattr(part, name, None) for name in inspect.signature(type(part)).parameters]
    several = [value if isinstance(value, list | tuple) else [value] for value in values]
    return sum(one.nbytes for value in several for one in value if isinstance(one, Tensor))


def _column_bytes(lm: LanguageModel) -> float:
    """Return the bytes of the keys and values of one column of one row; 0 where a model keeps something else.

    Read off a short pass, once for each data type: what of its configuration says it differs between families.
    """
    known = _columns.setdefault(lm.model, {})
    if lm.dtype not in known:
        known[lm.dtype] = _measured(lm) if can_repeat(lm.model) else 0.0
    return known[lm.dtype]


def _measured(lm: LanguageModel) -> float:
    cache, ids = DynamicCache(), torch.tensor([lm.text_tokens("Why?").prompt], device=lm.device)
    with evaluating(lm.model):
        run(lm.model, ids, torch.ones_like(ids), use_cache=True, logits_to_keep=1, **{CACHE: cache})
    held = [layer for layer in cache.layers if layer.is_initialized]
    return float(sum(layer.keys.nbytes + layer.values.nbytes for layer in held)) / ids.shape[1]
