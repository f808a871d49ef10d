"""A reward of the pooled form over a small decoder."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from steerbench.contract import tiny
from steerbench.models.checkpoint import find
from steerbench.models.pooled_block import HEAD, PooledForm

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


def saved_pooled(folder: Path) -> str:
    """Write one, with the model that it reads beside it, and return its folder."""
    torch.manual_seed(0)
    base, reward = folder / "base", folder / "reward"
    LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=320, initializer_range=0.3)).save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    form = PooledForm(str(base), find(str(base)).revision, block=1, dtype="float32")
    reward.mkdir()
    (reward / "config.json").write_text(form.write(), encoding="utf-8")
    save_file({HEAD[0]: torch.randn(16), HEAD[1]: torch.randn(1)}, reward / "model.safetensors")
    return str(reward)
