"""A reward of its own form: a linear head on the states of one block of another model, pooled over the reply's tokens.

The folder holds `config.json`, which names the model, the block and the pooling, and `model.safetensors` with the head
and, where they were trained too, the last blocks. `steerbench reward train` writes it.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel

from steerbench.errors import SteerbenchError
from steerbench.files import read_object
from steerbench.models.checkpoint import Source, find, load_model
from steerbench.models.machine import DTYPES
from steerbench.models.reward_text import REPLY
from steerbench.models.sites import Anatomy

MODEL_TYPE = "steerbench-pooled-block"
POOLING = "reply_mean"
"""The only pooling: the mean over the reply's tokens, and the last token of the text where the reply has none."""
HEAD = "head.weight", "head.bias"
"""(width,) and (1,), float32."""
BACKBONE = "backbone"
"""Folder or link inside of the reward's folder in which its model is looked for where the path is gone."""


class PooledForm(NamedTuple):
    """What `config.json` says."""

    backbone: str
    """Folder, or `org/name@commit` of the Hub; a path that starts with a dot is seen from the reward's folder."""
    backbone_revision: str
    block: int
    """Counted from 0; its output is read."""
    dtype: str
    """In which the states were made that the head was fitted on."""
    tuned_blocks: int = 0
    """How many of the last blocks up to `block` have weights of their own."""

    def write(self) -> str:
        """Return the text of `config.json`."""
        fixed = {"model_type": MODEL_TYPE, "architectures": ["PooledBlockReward"], "pooling": POOLING, "num_labels": 1}
        return json.dumps(fixed | self._asdict(), indent=2) + "\n"


def is_pooled(folder: Path) -> bool:
    """Whether a folder holds a reward of this form."""
    file = folder / "config.json"
    return file.is_file() and read_object(file).get("model_type") == MODEL_TYPE


def read_form(folder: Path) -> PooledForm:
    """Return what `config.json` says. Raises SteerbenchError where something is missing or of the wrong kind."""
    said = read_object(folder / "config.json")
    try:
        form = PooledForm(**{name: said[name] for name in PooledForm._fields})
    except KeyError as error:
        raise SteerbenchError(
            f"config.json of reward {folder.name!r} lacks {error}; train or download it again."
        ) from (error)
    numbers = isinstance(form.block, int) and isinstance(form.tuned_blocks, int) and form.block >= 0
    if said.get("pooling") != POOLING or form.dtype not in DTYPES or not numbers:
        raise SteerbenchError(f"config.json of reward {folder.name!r} is none that this version reads; update it.")
    return form


def with_backbone(source: Source) -> Source:
    """Return a reward's files with those of the model it reads; its revision says all that can change a score.

    Raises SteerbenchError if the model is not found, or is another one than the head was fitted on.
    """
    form = read_form(source.folder)
    beside = source.folder / BACKBONE
    named = str(source.folder.absolute() / form.backbone) if form.backbone.startswith(".") else form.backbone
    gone = named.startswith(("/", "~", ".")) and not Path(named).expanduser().exists()
    if gone and not beside.exists():
        raise SteerbenchError(
            f"reward {source.name!r} reads a model that is no longer where it was; put that model, or a link to it, "
            f"at {beside}."
        )
    base = find(str(beside) if beside.exists() else named)
    if base.revision != form.backbone_revision:
        raise SteerbenchError(
            f"reward {source.name!r} was fitted on another model than {base.name!r} is now "
            f"({form.backbone_revision[:19]} and not {base.revision[:19]}); give it that one, or train it again."
        )
    return source._replace(base=base, revision=_revision(source, form))


def _revision(source: Source, form: PooledForm) -> str:
    """Return a commit as it is; of a folder, a hash without paths and without what is only told of the reward."""
    if not source.revision.startswith("sha256:"):
        return source.revision
    said = form._replace(backbone="")
    weights = hashlib.sha256((source.folder / "model.safetensors").read_bytes()).hexdigest()
    return f"sha256:{hashlib.sha256(f'{said.write()}{weights}'.encode()).hexdigest()}"


class BlockStates(nn.Module):
    """A model cut behind the last block that is asked for; it gives the pooled states of blocks, in float32."""

    def __init__(self, model: Any, blocks: Sequence[int], name: str = "model") -> None:
        """Cut the model. Raises SteerbenchError if it has no such block."""
        super().__init__()
        stack = Anatomy(model).blocks
        if not blocks or not 0 <= min(blocks) <= max(blocks) < len(stack):
            raise SteerbenchError(f"block {list(blocks)} of {name!r} is outside 0..{len(stack) - 1}.")
        self.model, self.blocks, self.stack = model, tuple(blocks), stack
        del stack[max(blocks) + 1 :]
        self._found: dict[int, Tensor] = {}
        for block in self.blocks:
            stack[block].register_forward_hook(partial(self._keep, block))

    def _keep(self, block: int, module: nn.Module, args: Any, output: Any) -> None:
        self._found[block] = output if isinstance(output, Tensor) else output[0]

    def forward(self, ids: Tensor, marks: Tensor) -> Tensor:
        """Return (batch, blocks, width) for ids and marks, (batch, columns)."""
        weights = pooling_weights(marks)[:, None]
        return self.pooled(weights, input_ids=ids, attention_mask=(marks > 0).long())[:, 0]

    def pooled(self, weights: Tensor, **inputs: Tensor) -> Tensor:
        """Return weighted sums of states, (batch, sums, blocks, width), for weights of (batch, sums, columns)."""
        return torch.stack([weights @ states.float() for states in self.read(**inputs)], dim=2)

    def read(self, **inputs: Any) -> list[Tensor]:
        """Return the states that each block gives, (batch, columns, width)."""
        self.model(**inputs)
        states = [self._found[block] for block in self.blocks]
        self._found.clear()
        return states


def pooling_weights(marks: Tensor) -> Tensor:
    """Return what each state counts, (batch, columns) float32: equal parts of the reply, or all of the last token."""
    reply = (marks == REPLY).float()
    n = reply.sum(1, keepdim=True)
    return torch.where(n > 0, reply / n.clamp_min(1), at_last(marks))


def at_last(marks: Tensor) -> Tensor:
    """Return a one for the last token of each row, (batch, columns) float32."""
    return nn.functional.one_hot((marks > 0).sum(1) - 1, marks.shape[1]).float()


class PooledHead(nn.Module):
    """The reward: head and states of one block."""

    weight: Tensor
    bias: Tensor

    def __init__(self, states: BlockStates, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.states = states
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def forward(self, ids: Tensor, marks: Tensor) -> Tensor:
        """Return (batch,) scores."""
        return self.scores(marks, input_ids=ids, attention_mask=(marks > 0).long())

    def scores(self, marks: Tensor, **inputs: Any) -> Tensor:
        """Return what a pass over some inputs gives, (batch,), pooled by the marks of its columns."""
        pooled = self.states.pooled(pooling_weights(marks)[:, None], **inputs)[:, 0, 0]
        value: Tensor = pooled @ self.weight + self.bias
        return value

    def values(self, **inputs: Any) -> Tensor:
        """Return the score of each state of a pass by itself, (batch, columns): that of a text is their mean."""
        (states,) = self.states.read(**inputs)
        return states.float() @ self.weight + self.bias


def load_pooled(source: Source, dtype: torch.dtype | None) -> tuple[Any, nn.Module]:
    """Return the model that a reward reads, cut and with the blocks that were trained, and the reward's forward."""
    if source.base is None:
        raise ValueError("a reward of this form needs its model: with_backbone")
    form = read_form(source.folder)
    model, missing = load_model(AutoModel, source.base, dtype or DTYPES[form.dtype])
    states = BlockStates(model, [form.block], source.base.name)
    weights = _weights(source)
    check_complete(source.base, missing)
    for i in range(form.tuned_blocks):
        prefix = f"blocks.{form.block - i}."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        states.stack[form.block - i].load_state_dict(own)
    return model, PooledHead(states, weights[HEAD[0]], weights[HEAD[1]])


def check_complete(source: Source, missing: set[str]) -> None:
    """Raise SteerbenchError if a model lacks weights that its blocks read: a pooler is behind them."""
    if read := {name for name in missing if "pooler" not in name}:
        raise SteerbenchError(f"{source.name!r} is incomplete: it lacks {min(read)}; download it again.")


def _weights(source: Source) -> dict[str, Tensor]:
    try:
        weights = load_file(source.folder / "model.safetensors")
    except Exception as error:  # a damaged file ends in any of them
        raise SteerbenchError(
            f"the weights of reward {source.name!r} cannot be read: {error}; train or download it again."
        ) from error
    if lacking := [name for name in HEAD if name not in weights]:
        raise SteerbenchError(f"reward {source.name!r} lacks {lacking[0]}; train or download it again.")
    return weights
