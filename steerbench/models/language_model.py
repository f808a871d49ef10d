"""A frozen language model: loading, tokens, and what every forward pass needs to know."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from steerbench.data.dialogue import Dialogue
from steerbench.errors import SteerbenchError
from steerbench.models.checkpoint import find, load_model, load_tokenizer
from steerbench.models.modes import evaluating
from steerbench.models.prompt_format import PromptFormat
from steerbench.models.response import Response, cut_response
from steerbench.models.revision import model_revision
from steerbench.models.sites import Anatomy


class Tokens(NamedTuple):
    """A prompt and a response as token ids. The prompt is never empty."""

    prompt: tuple[int, ...]
    response: tuple[int, ...] = ()


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
        self, model: PreTrainedModel, tokenizer: Any, *, name: str = "model", revision: str | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self._revision = revision
        self.format = PromptFormat(tokenizer)
        self.anatomy = Anatomy(model)
        self.end_ids = self._find_end_ids(model.generation_config)

    @cached_property
    def revision(self) -> str:
        """Which weights these are, for records: as given, or else a hash of weights, configuration and tokenizer."""
        return self._revision or model_revision(self.model, self.tokenizer)

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device, and return this object."""
        self.model.to(device)
        return self

    @property
    def generation_config(self) -> GenerationConfig:
        """What every generation begins with: the end tokens and the padding, and nothing of the checkpoint's own."""
        return GenerationConfig(eos_token_id=self.end_ids or None, pad_token_id=self.pad_id)

    @classmethod
    def load(cls, name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Self:
        """Load a folder or a model of the Hub (`org/name` or `org/name@revision`); remote code is never run.

        `dtype` defaults to float32 on a CPU and to the checkpoint's own on a GPU.
        """
        source = find(name)
        if dtype is None and torch.device(device).type == "cpu":
            dtype = torch.float32
        tokenizer = load_tokenizer(source)
        model, missing = load_model(AutoModelForCausalLM, source, dtype or "auto")
        if missing:
            raise SteerbenchError(f"{name} is no causal language model: its checkpoint lacks {min(missing)}.")
        lm = cls(model.to(device), tokenizer, name=source.name, revision=source.revision)
        lm._check_vocabulary()
        lm._check_causal()
        return lm

    def _check_vocabulary(self) -> None:
        rows = self.model.get_input_embeddings().weight.shape[0]
        largest = max(self.tokenizer.get_vocab().values())
        if largest >= rows:
            raise SteerbenchError(
                f"the tokenizer of {self.name} has ids up to {largest} and the model {rows} embeddings; "
                f"use the tokenizer it was trained with."
            )

    @torch.no_grad()
    def _check_causal(self) -> None:
        """Refuse models whose tokens see what follows them, such as BERT, which load as language models, too."""
        rows = self.model.get_input_embeddings().weight.shape[0]
        ids = torch.tensor([[1, 2, 3], [1, 2, 4]], device=self.device) % rows
        with evaluating(self.model):
            logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, 0]
        if not torch.allclose(logits[0], logits[1], atol=1e-2, rtol=1e-2):
            raise SteerbenchError(f"{self.name} is no causal language model: its tokens see what follows them.")

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
        """Largest number of prompt and response tokens together."""
        config = self.model.config.get_text_config(decoder=True)
        return int(getattr(config, "max_position_embeddings", None) or 2**31)

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
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else (self.end_ids or [0])[0])

    def _find_end_ids(self, config: GenerationConfig | None) -> list[int]:
        declared = config.eos_token_id if config is not None else None
        ids = [declared] if isinstance(declared, int) else list(declared or [])
        ids += [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        return sorted({*ids, *self.format.end_of_turn_ids})

    def tokens(self, dialogue: Dialogue, response: str | None = None, limit: int | None = None) -> Tokens:
        """Tokenize a prompt and, if given, a response, of which at most `limit` tokens are kept."""
        text = self.format.text(dialogue)
        prompt = self._ids(text)
        if response is None:
            return Tokens(prompt)
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
        return tuple(ids) or (self.pad_id,)

    def cut(self, ids: Sequence[int]) -> Response:
        """Cut generated ids into a response."""
        return cut_response(self.tokenizer, ids, self.end_ids, self.format.turn_markers)

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


def by_length(tokens: Sequence[Tokens], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of indices, longest first: little padding, and a batch too large for the memory fails at once."""
    order = sorted(range(len(tokens)), key=lambda i: -sum(map(len, tokens[i])))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
