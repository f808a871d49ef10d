"""Reward models: one number for a response to a dialogue, the same alone as in any batch."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from steerbench.data.dialogue import Dialogue, Turn
from steerbench.errors import SteerbenchError
from steerbench.models.batching import check_ids, in_batches, padding_id, position_limit
from steerbench.models.chat_template import is_whole
from steerbench.models.checkpoint import Source, find, load_model, load_tokenizer, read_tensor, tensor_files
from steerbench.models.pieces import inner_size
from steerbench.models.pooled_block import (
    PooledHead,
    at_last,
    is_pooled,
    load_pooled,
    pooling_weights,
    with_backbone,
)
from steerbench.models.reward_text import READ, RewardText
from steerbench.models.self_check import scorer_batch, trial_rows
from steerbench.models.training_prompts import TrainedOn, read_trained_on
from steerbench.models.weights import weight_bytes
from steerbench.progress import Advance, Progress, silent

_ULTRA_HEAD = "regression_head.weight"


class Reward(ABC):
    """A reward: what the bench scores with and what methods may learn from. Higher is better."""

    name: str
    """Shown in every table."""
    revision: str
    """Changes whenever a score could; part of the protocol."""
    truncated: int = 0
    """How many of the texts scored so far were too long, and scored without their beginning."""
    shows_date: bool = False
    """Whether it reads a date, which is a fixed one."""
    largest_batch: int | None = None
    """How many texts it takes at once: 1 if padding changes its scores, None for any number."""
    weight_bytes: int = 0
    """Bytes of weights that each call reads; 0 where that is not known."""
    trained_on: TrainedOn | None = None
    """The prompts that it was trained on, where it says so."""

    def check(self) -> None:  # noqa: B027 - a reward is ready unless it says otherwise
        """Raise SteerbenchError if nothing can be scored. Called before long work whose end is a score."""

    def check_prompts(self, dialogues: Sequence[Dialogue]) -> None:  # noqa: B027 - most rewards read any dialogue
        """Raise SteerbenchError if one of these dialogues cannot be read. Called before responses are made."""

    @abstractmethod
    def score(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str], progress: Progress = silent
    ) -> torch.Tensor:
        """Return the reward of each response to the dialogue before it, (N,) float32 on the CPU."""


class RewardModel(Reward):
    """A Hugging Face reward model: sequence classification with one label, the UltraRM form, or a pooled block.

    Dialogues are written in the model's own chat template, or as `Human: ...` / `Assistant: ...` where it has none.
    Texts beyond the model's limit lose their beginning, so that the response is always read.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Any,
        model: Any,
        forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        *,
        device: torch.device,
        batch_size: int,
    ) -> None:
        self.name, self.revision, self.limit = source.name, source.revision, position_limit(model, tokenizer)
        self.device, self.batch_size = device, batch_size
        self.weight_bytes = weight_bytes(model)
        self._tokenizer, self._model, self._forward = tokenizer, model, forward
        self._writer = RewardText(tokenizer, self.name)
        self.shows_date = self._writer.shows_date

    @classmethod
    def load(
        cls, name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, batch_size: int = 16
    ) -> Self:
        """Load a local folder or `org/name[@revision]` of the Hub.

        In float32 unless told otherwise, a pooled block in the type that its head was fitted in. Raises SteerbenchError
        if it is not a trained reward model with one output.
        """
        source, device = find(name), torch.device(device)
        if is_pooled(source.folder):
            source = with_backbone(source)
        tokenizer = load_tokenizer(source)
        model, forward = _loader(source)(source, dtype)
        dtype = model.dtype
        made = cls(source, tokenizer, model, forward.to(device), device=device, batch_size=batch_size)
        rows = trial_rows(tokenizer, made.limit, model)
        made.largest_batch = scorer_batch(f"reward model {source.name!r}", forward, rows, made._pad_id, device, dtype)
        made.trained_on = read_trained_on(source.folder)
        return made

    @property
    def _pad_id(self) -> int:
        return padding_id(self._tokenizer, self._model)

    def text(self, dialogue: Dialogue, response: str) -> str:
        """Write a dialogue and its response the way this model was trained to read them."""
        return self._writer.text(dialogue, response)

    def check_prompts(self, dialogues: Sequence[Dialogue]) -> None:
        """Raise SteerbenchError if the chat template refuses a dialogue with a response, or drops a part of it."""
        for dialogue in dialogues:
            self.text(dialogue, "Yes.")

    def score(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str], progress: Progress = silent
    ) -> torch.Tensor:
        """Return the reward of each response, (N,) float32 on the CPU. Raises SteerbenchError if one is not finite."""
        rows, marks = self._rows(dialogues, responses)
        with progress(f"score with {self.name}", len(rows)) as advance:
            return self.finite(self._scores(dialogues, rows, marks, advance))

    def _scores(
        self,
        dialogues: Sequence[Dialogue],
        rows: Sequence[list[int]],
        marks: Sequence[list[int]] | None,
        advance: Advance,
    ) -> torch.Tensor:
        """Return the score of each row of ids, the text of a reply to its dialogue."""
        return self.read(rows, marks, advance)

    def tokens(self, dialogues: Sequence[Dialogue], responses: Sequence[str]) -> list[list[int]]:
        """Return the ids that it reads for each response to the dialogue before it."""
        return self._rows(dialogues, responses)[0]

    def marked(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Return the same ids and their marks, `REPLY` for those of a reply whose states a pooled head reads."""
        rows, marks = self._rows(dialogues, responses)
        return rows, marks or [[READ] * len(ids) for ids in rows]

    def _rows(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        """Return the ids of each text, and their marks for a head that asks for them; counts what was truncated."""
        texts = [self.text(d, r) for d, r in zip(dialogues, responses, strict=True)]
        self._tell_dropped(texts, responses)
        marks = None
        if isinstance(self._forward, PooledHead):
            rows, marks, truncated = self._writer.marked(dialogues, responses, self.limit)
        else:
            rows, truncated = self._writer.rows(texts, self.limit)
        check_ids(rows, self._tokenizer, self._model, self.name)
        self.truncated += truncated
        return rows, marks

    def read(
        self, rows: Sequence[list[int]], marks: Sequence[list[int]] | None = None, advance: Advance = lambda n: None
    ) -> torch.Tensor:
        """Return the score of each row of ids, (N,) float32 on the CPU."""
        return in_batches(
            rows,
            self._forward,
            marks=marks,
            batch_size=self.largest_batch or self.batch_size,
            pad_id=self._pad_id,
            device=self.device,
            advance=advance,
            size=inner_size(self._model),
        )

    def finite(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores. Raises SteerbenchError if one is not finite."""
        if bad := int((~scores.isfinite()).sum()):
            raise SteerbenchError(
                f"reward model {self.name!r} gave {bad} of {len(scores)} scores that are not finite; "
                "its weights are damaged, or too large for their type. Use another reward model."
            )
        return scores

    @property
    def backbone(self) -> PreTrainedModel | None:
        """The model of whose states the score is a sum; None where there is no such one."""
        forward = self._forward
        if isinstance(forward, PooledHead):
            return forward.states.model
        return forward.backbone if isinstance(forward, _LastToken) else None

    def head(self, marks: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Return the scores of a pass of the backbone over some inputs, (batch,); `marks` (batch, columns) as read."""
        assert isinstance(self._forward, PooledHead | _LastToken)
        return self._forward.scores(marks, **inputs)

    def values(self, **inputs: Any) -> torch.Tensor:
        """Return what the head makes of each state of a pass of the backbone, (batch, columns)."""
        assert isinstance(self._forward, PooledHead | _LastToken)
        return self._forward.values(**inputs)

    def weights(self, marks: torch.Tensor) -> torch.Tensor:
        """Return how much each of the values counts in the score of its text, (batch, columns)."""
        return pooling_weights(marks) if isinstance(self._forward, PooledHead) else at_last(marks)

    def _tell_dropped(self, texts: Sequence[str], responses: Sequence[str]) -> None:
        """Warn of responses that the template does not write whole: some drop the thoughts of a reply."""
        pairs = zip(texts, responses, strict=True)
        if dropped := sum(not is_whole(Turn("assistant", response), text) for text, response in pairs):
            warnings.warn(
                f"the chat template of reward model {self.name!r} leaves out a part of {dropped} of {len(texts)} "
                f"responses, such as their thoughts; they are scored without it.",
                stacklevel=3,
            )


class _Classifier(nn.Module):
    """A model that pools by itself and is not misled by padding: an encoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits  # (batch, 1)
        return logits[:, 0]


class _LastToken(nn.Module):
    """A decoder and a linear head in float32, read at the last token by the mask.

    `transformers` looks for the last id that is not the pad id instead: wrong where the pad token is the EOS token or
    occurs in the text, impossible where there is none.
    """

    def __init__(self, backbone: Any, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head.float()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.scores(mask, input_ids=ids, attention_mask=(mask > 0).long())

    def scores(self, marks: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Return what a pass over some inputs gives, read where the last mark above 0 of each row is."""
        hidden = self.backbone(**inputs).last_hidden_state  # (batch, seq, d_model)
        last = hidden[torch.arange(len(marks), device=marks.device), (marks > 0).sum(1) - 1]
        value: torch.Tensor = self.head(last.float())  # (batch, 1)
        return value[:, 0]

    def values(self, **inputs: Any) -> torch.Tensor:
        """Return what the head makes of each state of a pass, (batch, columns)."""
        value: torch.Tensor = self.head(self.backbone(**inputs).last_hidden_state.float())
        return value[..., 0]


def _loader(source: Source) -> Callable[[Source, torch.dtype | None], tuple[Any, nn.Module]]:
    """Return what loads a reward of this form."""
    if is_pooled(source.folder):
        return load_pooled
    return _ultra if _ULTRA_HEAD in tensor_files(source) else _classifier


def _ultra(source: Source, dtype: torch.dtype | None) -> tuple[Any, nn.Module]:
    """Load the UltraRM form: a decoder, and `regression_head.weight` (1, d_model) beside it in the checkpoint."""
    backbone, missing = load_model(AutoModel, source, dtype or torch.float32)
    _refuse_untrained(source, missing)
    weight = read_tensor(tensor_files(source)[_ULTRA_HEAD], _ULTRA_HEAD)
    if weight.shape[0] != 1:
        raise SteerbenchError(
            f"reward model {source.name!r} has {weight.shape[0]} outputs; use one with a single score."
        )
    head = nn.Linear(weight.shape[1], 1, bias=False)
    head.weight = nn.Parameter(weight.float(), requires_grad=False)
    return backbone, _LastToken(backbone, head)


def _classifier(source: Source, dtype: torch.dtype | None) -> tuple[Any, nn.Module]:
    """Load a sequence classifier. A decoder is known by its linear `score`, the name they all share."""
    model, missing = load_model(AutoModelForSequenceClassification, source, dtype or torch.float32)
    _refuse_untrained(source, missing)
    labels = model.config.num_labels  # `model.num_labels` is missing in the BART family
    if labels != 1:
        raise SteerbenchError(
            f"{source.name!r} is a classifier with {labels} labels; a reward model has one. Use another."
        )
    head = getattr(model, "score", None)
    return model, _LastToken(model.base_model, head) if isinstance(head, nn.Linear) else _Classifier(model)


def _refuse_untrained(source: Source, missing: set[str]) -> None:
    if missing:
        raise SteerbenchError(
            f"{source.name!r} is not a trained reward model: its checkpoint lacks {', '.join(sorted(missing)[:3])}. "
            "Use a sequence-classification checkpoint with one label, or one in the UltraRM form."
        )
