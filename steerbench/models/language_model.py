"""A frozen language model: loading, tokens, and what every forward pass needs to know."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from steerbench.data.dialogue import Dialogue
from steerbench.decoding import Thinking
from steerbench.errors import SteerbenchError
from steerbench.files import read_object
from steerbench.models.batching import check_ids, n_embeddings, n_positions
from steerbench.models.checkpoint import Source, find, load_model, load_tokenizer
from steerbench.models.pieces import by_length
from steerbench.models.prompt_format import PromptFormat
from steerbench.models.response import Response, cut_response
from steerbench.models.revision import model_revision
from steerbench.models.self_check import (
    RESPONSE,
    check_causal,
    check_decoder_only,
    check_in_memory,
    check_unhashed,
    language_model_batch,
)
from steerbench.models.sites import Anatomy

_TRIAL = "How do I bake a loaf of bread that keeps for a week, and what does it need?"
_LENGTHS = (4, 11)
"""Tokens of two prompts that are tried out: apart by more than the short convolutions of some families see."""


class Tokens(NamedTuple):
    """A prompt and a response as token ids. The prompt is never empty."""

    prompt: tuple[int, ...]
    """Ids of the whole prompt as the model reads it, chat template included."""
    response: tuple[int, ...] = ()
    """Ids of the response; empty where there is none."""


class Batch(NamedTuple):
    """Padded ids and mask, (batch, columns), and for each row the column after its prompt."""

    input_ids: Tensor
    attention_mask: Tensor
    prompt_ends: list[int]


class LanguageModel:
    """A decoder-only causal language model with its tokenizer.

    A model that was handed over stays as it came, in its mode and with its generation settings. It runs in evaluation
    mode, with `generation_config`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        name: str = "model",
        revision: str | None = None,
        thinking: Thinking = "off",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        check_in_memory(model, name)
        check_unhashed(model, name)
        self._revision = revision
        self.format = PromptFormat(tokenizer, thinking)
        self.anatomy = Anatomy(model)
        self.end_ids = self._find_end_ids(model.generation_config)

    @cached_property
    def revision(self) -> str:
        """Which weights these are, for records: as given, or else a hash of weights, configuration and tokenizer."""
        return self._revision or model_revision(self.model, self.tokenizer)

    @cached_property
    def largest_batch(self) -> int | None:
        """How many sequences the model takes at once: 1 if padding changes its logits, None for any number.

        Tried out on two short rows. Raises SteerbenchError if what is generated cannot be scored as it was drawn.
        """
        ids = (self.text_tokens(_TRIAL).prompt * max(_LENGTHS))[: self.context_length]
        rows = [ids[: length + RESPONSE] for length in _LENGTHS]
        return language_model_batch(self.model, self.name, rows, self.pad_id) if len(rows[0]) < len(rows[1]) else None

    def batches(self, tokens: Sequence[Tokens], batch_size: int, *, size: int = 0) -> Iterator[list[int]]:
        """Yield batches of indices, longest first, of at most `batch_size`, and of one where the model needs it.

        With the `size` of the largest tensor of a pass, in bytes per token, a CPU gets fewer where that is faster.
        """
        lengths = [sum(map(len, one)) for one in tokens]
        return by_length(lengths, min(batch_size, self.largest_batch or batch_size), size, self.device)

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device, and return this object."""
        self.model.to(device)
        return self

    @property
    def generation_config(self) -> GenerationConfig:
        """What every generation begins with: the end tokens and the padding, and nothing of the checkpoint's own."""
        return GenerationConfig(eos_token_id=self.end_ids or None, pad_token_id=self.pad_id)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        thinking: Thinking = "off",
        device_map: str | None = None,
    ) -> Self:
        """Load a folder or a model of the Hub (`org/name` or `org/name@revision`); remote code is never run.

        `dtype` defaults to float32 on a CPU and to the checkpoint's own on a GPU. `thinking` is for models that reason
        before they answer; see `steerbench.decoding.Thinking`. `device_map="auto"` spreads one model over all GPUs.
        """
        source = find(name)
        if dtype is None and torch.device(device).type == "cpu":
            dtype = torch.float32
        tokenizer = load_tokenizer(source)
        model, missing = load_model(_auto_class(source), source, dtype or "auto", device_map)
        if missing:
            raise SteerbenchError(f"{name} is no causal language model: its checkpoint lacks {min(missing)}.")
        placed = model if device_map else model.to(device)
        lm = cls(placed, tokenizer, name=source.name, revision=source.revision, thinking=thinking)
        lm._check_vocabulary()
        check_decoder_only(lm.model, lm.name)
        check_causal(lm.model, lm.name)
        lm.largest_batch  # noqa: B018 - tells now what would be told in the middle of a run
        return lm

    def _check_vocabulary(self) -> None:
        """Refuse ids without an embedding, unless all were added to the vocabulary: texts can do without those."""
        rows = n_embeddings(self.model)
        largest = max(self.tokenizer.get_vocab().values() - self.tokenizer.added_tokens_decoder.keys(), default=0)
        if largest >= rows:
            raise SteerbenchError(
                f"the tokenizer of {self.name} has ids up to {largest} and the model {rows} embeddings; "
                f"use the tokenizer it was trained with."
            )

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.anatomy.blocks)

    @property
    def context_length(self) -> int:
        """Largest number of prompt and response tokens together.

        Under LongRoPE, as in Phi-3, it ends where all positions of a batch change: behind that, a response would depend
        on the length of its neighbours, and would be scored at other positions than it was drawn at.
        """
        config = self.model.config.get_text_config(decoder=True)
        rope = getattr(config, "rope_parameters", None) or {}
        kinds = [rope, *(of_layers for of_layers in rope.values() if isinstance(of_layers, dict))]
        borders = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
        return int(min([n_positions(self.model) or 2**31, *borders]))

    def check_fit(self, tokens: Sequence[Tokens], new: int) -> None:
        """Raise SteerbenchError if a text and `new` tokens behind it do not fit the context."""
        longest = max((len(t.prompt) + len(t.response) for t in tokens), default=0)
        if longest + new > self.context_length:
            raise SteerbenchError(
                f"a text of {longest} tokens and {new} new ones do not fit the context of {self.context_length}; "
                f"shorten the prompt, or lower --max-new-tokens or --max-prompt-tokens."
            )

    @cached_property
    def pad_id(self) -> int:
        """Id that fills batches. The mask says what is real, so any id will do where there is no pad token."""
        readable = (i for i in (self.tokenizer.pad_token_id, *self.end_ids) if i is not None)
        return next((int(i) for i in readable if i < n_embeddings(self.model)), 0)

    def _find_end_ids(self, config: GenerationConfig | None) -> list[int]:
        declared = config.eos_token_id if config is not None else None
        ids = [declared] if isinstance(declared, int) else list(declared or [])
        if not all(isinstance(i, int) for i in ids):
            raise SteerbenchError(
                f"eos_token_id of {self.name} is {declared!r}, and not a number or a list of numbers."
            )
        ids += [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        return sorted({*ids, *self.format.end_of_turn_ids})

    def tokens(self, dialogue: Dialogue, response: str | None = None, limit: int | None = None) -> Tokens:
        """Tokenize a prompt and, if given, a response, of which at most `limit` tokens are kept.

        Where the model would think first, an empty thought stands between them, at the end of the prompt.
        """
        text = self.format.text(dialogue)
        if response is None:
            return Tokens(self._ids(text))
        text += self.format.opening
        prompt = self._ids(text)
        whole = self._ids(text + self.format.reply_prefix + response)
        joined = whole[: len(prompt)] == prompt
        reply = whole[len(prompt) :] if joined else self._ids(self.format.reply_prefix + response, special=False)
        return Tokens(prompt, reply[:limit])

    def text_tokens(self, text: str) -> Tokens:
        """Tokenize a text that is no dialogue, with the special token that begins it, if there is one."""
        return Tokens(self._tokenized(text, add=True))

    def _ids(self, text: str, special: bool = True) -> tuple[int, ...]:
        """Tokenize text of a dialogue. A template writes its own special tokens."""
        return self._tokenized(text, add=special and not self.format.has_template)

    def _tokenized(self, text: str, *, add: bool) -> tuple[int, ...]:
        """Tokenize text, with special tokens if asked; a closing EOS that some tokenizers add is dropped."""
        ids = self.tokenizer(text, add_special_tokens=add, verbose=False)["input_ids"]
        if add and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        check_ids([ids], self.tokenizer, self.model, self.name)
        return tuple(ids) or (self.pad_id,)

    def cut(self, ids: Sequence[int]) -> Response:
        """Cut generated ids into a response."""
        thought = None if self.format.thinking == "keep" else self.format.thought
        return cut_response(self.tokenizer, ids, self.end_ids, self.format.turn_markers, thought)

    def left_padded(self, prompts: Sequence[Tokens]) -> Batch:
        """Return prompts as a batch for generation: left padded, so that all end in the last column."""
        width = max(len(t.prompt) for t in prompts)
        rows = [(width - len(t.prompt), t.prompt, 0) for t in prompts]
        return self._padded(rows, [width] * len(prompts))

    def right_padded(self, sequences: Sequence[Tokens]) -> Batch:
        """Return prompts with their responses as a batch: right padded, so that no family needs position ids."""
        width = max(len(t.prompt) + len(t.response) for t in sequences)
        rows = [(0, t.prompt + t.response, width - len(t.prompt) - len(t.response)) for t in sequences]
        return self._padded(rows, [len(t.prompt) for t in sequences])

    def _padded(self, rows: Sequence[tuple[int, tuple[int, ...], int]], prompt_ends: list[int]) -> Batch:
        ids = [[self.pad_id] * left + list(row) + [self.pad_id] * right for left, row, right in rows]
        mask = [[0] * left + [1] * len(row) + [0] * right for left, row, right in rows]
        return Batch(torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device), prompt_ends)


def _auto_class(source: Source) -> Any:
    """Return the class that loads a language model: some vision-language models are known as nothing else."""
    if source.gguf:
        return AutoModelForCausalLM
    kind = str(read_object((source.base or source).folder / "config.json").get("model_type"))
    text_only = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    with_images = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return AutoModelForImageTextToText if with_images and not text_only else AutoModelForCausalLM
