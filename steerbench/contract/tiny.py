"""Tiny random models of every supported family, built on the spot: for the contract suite, tests and a first run.

`python -m steerbench.contract.tiny DIR` writes a language model, a reward model, a sentence encoder and records like
those of HH-RLHF.
They are random: good for seeing that everything works, worthless as a measurement.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from steerbench.data.dialogue import Dialogue, parse_hh
from steerbench.data.task import Example
from steerbench.models.language_model import LanguageModel
from steerbench.models.reward import Reward
from steerbench.progress import Progress, silent
from steerbench.seeds import generator_for

WIDTH, LAYERS, HEADS, CONTEXT = 32, 3, 4, 256
SPECIAL = ["<pad>", "<bos>", "<eos>"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer: 256 bytes and three special tokens, no merges, no chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos, model_max_length=CONTEXT
    )


def _llama_like(cls: type[PreTrainedConfig], **more: Any) -> PreTrainedConfig:
    return cls(
        vocab_size=len(SPECIAL) + 256,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )


def _gpt_like(cls: type[PreTrainedConfig], **more: Any) -> PreTrainedConfig:
    return cls(vocab_size=len(SPECIAL) + 256, pad_token_id=0, bos_token_id=1, eos_token_id=2, **more)


FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: _llama_like(LlamaConfig),
    "mistral": lambda: _llama_like(MistralConfig, sliding_window=16),
    "qwen2": lambda: _llama_like(Qwen2Config),
    "qwen3": lambda: _llama_like(Qwen3Config, head_dim=16),
    # untied, because scaled embeddings that are tied to the head would repeat the last token whatever is edited
    "gemma2": lambda: _llama_like(Gemma2Config, head_dim=16, sliding_window=16, tie_word_embeddings=False),
    "phi3": lambda: _llama_like(Phi3Config),
    "falcon": lambda: _gpt_like(
        FalconConfig,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
    ),
    "gpt2": lambda: _gpt_like(GPT2Config, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT),
    "gpt_neo": lambda: _gpt_like(
        GPTNeoConfig,
        hidden_size=WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        attention_types=[[["global", "local", "global"], 1]],
        window_size=16,
        max_position_embeddings=CONTEXT,
    ),
    "gpt_neox": lambda: _gpt_like(
        GPTNeoXConfig,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
    ),
    "opt": lambda: _gpt_like(
        OPTConfig,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
    ),
}
"""Family -> configuration of a tiny model."""


def language_model(family: str = "llama", seed: int = 0) -> LanguageModel:
    """Return a random model of a family, in float32, with weights large enough that every edit shows in the logits."""
    model = AutoModelForCausalLM.from_config(FAMILIES[family]()).eval().requires_grad_(False)
    _randomise(model, seed)
    lm = LanguageModel(model, tokenizer(), name=f"tiny-{family}", revision=f"seed-{seed}")
    lm.largest_batch = None  # what a model of the user's is tried out for, these are tested for
    return lm


def _randomise(model: PreTrainedModel, seed: int) -> None:
    generator = generator_for(seed, "tiny", model.config.model_type)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        elif name.endswith("bias"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


class VowelReward(Reward):
    """A reward that needs no model: the share of vowels. For tests."""

    name = "vowels"
    revision = "1"

    def score(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str], progress: Progress = silent
    ) -> torch.Tensor:
        """Return the share of vowels in each response, (N,)."""
        return torch.tensor([sum(c in "aeiou" for c in r.lower()) / max(len(r), 1) for r in responses])


class MeanCode(Reward):
    """A reward that differs between nearly all texts: the mean code of a response's characters, modulo 32.

    What learns from rollouts meets it in the contract suite: few of a tiny model's random responses hold a vowel, and
    rollouts that are all worth the same teach nothing.
    """

    name = "mean code"
    revision = "1"

    def score(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str], progress: Progress = silent
    ) -> torch.Tensor:
        """Return it for each response, (N,), in [0, 1); 0 where it is empty."""
        return torch.tensor([sum(ord(c) % 32 for c in r) / max(len(r), 1) / 32 for r in responses])


class SharedLetters(Reward):
    """A reward that reads the dialogue: the share of a response's characters that its last turn has, too.

    What guides decoding meets it in the contract suite: one that forgot whose response it reads would show.
    """

    name = "shared letters"
    revision = "1"

    def score(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str], progress: Progress = silent
    ) -> torch.Tensor:
        """Return the share in each response, (N,); 0 where it is empty."""
        last = [set(dialogue[-1].text.lower()) for dialogue in dialogues]
        pairs = zip(last, responses, strict=True)
        return torch.tensor([sum(c in known for c in r.lower()) / max(len(r), 1) for known, r in pairs])


def build(folder: Path) -> None:
    """Write `lm/`, `reward/`, `encoder/` and `hh_rlhf.jsonl` into a folder."""
    lm = language_model()
    lm.model.save_pretrained(folder / "lm")
    shape = dict(hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=HEADS)
    bert = BertConfig(
        vocab_size=len(SPECIAL) + 256, max_position_embeddings=CONTEXT, pad_token_id=0, num_labels=1, **shape
    )
    for name, model in {"reward": BertForSequenceClassification(bert), "encoder": BertModel(bert)}.items():
        _randomise(model, seed=0)
        model.save_pretrained(folder / name)
    for name in ("lm", "reward", "encoder"):
        tokenizer().save_pretrained(folder / name)
    (folder / "hh_rlhf.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _records()), encoding="utf-8")


def examples() -> list[Example]:
    """Return the records as examples."""
    pairs = [(parse_hh(row["chosen"]), parse_hh(row["rejected"])) for row in _records()]
    return [Example(str(i), str(i), c[:-1], c[-1].text, r[-1].text) for i, (c, r) in enumerate(pairs)]


def _records() -> list[dict[str, str]]:
    """Return 64 preference pairs: a polite and a curt reply to invented everyday questions."""
    things = ["bread", "soup", "a kite", "a shelf", "tea", "a garden", "a budget", "a poem"]
    verbs = ["make", "buy", "plan", "repair", "explain", "sell", "paint", "choose"]
    rows = []
    for verb in verbs:
        for thing in things:
            prompt = f"\n\nHuman: How do I {verb} {thing}?\n\nAssistant:"
            chosen = f"{prompt} Happy to help you {verb} {thing}. Start small and take your time."
            rows.append({"chosen": chosen, "rejected": f"{prompt} No idea about {thing}."})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write tiny random models and records.")
    parser.add_argument("folder", type=Path, help="a new folder")
    build(parser.parse_args().folder)
