"""Families that vLLM runs on a CPU, on tiny models: no list of them is in the engine, the try on the model decides."""

from pathlib import Path
from typing import Any

import pytest
from carried_steerings import CONSTANTS, PROMPTS, carried
from transformers import AutoModelForCausalLM

from steerbench import LanguageModel, SteerbenchError, Steering, generate
from steerbench.contract import tiny
from steerbench.decoding import Decoding
from steerbench.engine.backends.vllm_engine import VllmEngine

NEW = Decoding(max_new_tokens=6)
# heads of 32 and more, which the kernels on a CPU need
LIKE_LLAMA = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
WIDER: dict[str, dict[str, Any]] = {
    "mistral": LIKE_LLAMA,
    "qwen2": {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1},
    "phi3": {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1},
    "gpt2": {"n_embd": 64, "n_head": 2},
    "opt": {"hidden_size": 64, "word_embed_proj_dim": 64, "num_attention_heads": 2, "ffn_dim": 128},
}


def build(folder: Path, family: str, changes: dict[str, Any]) -> tuple[LanguageModel, VllmEngine]:
    """Write a model into a folder, and load it for both."""
    config = tiny.FAMILIES[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config).eval()
    tiny._randomise(model, 0)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return LanguageModel.load(str(folder)), VllmEngine(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("family", list(WIDER))
def test_every_site_of_a_family(family: str, tmp_path: Path) -> None:
    lm, engine = build(tmp_path, family, WIDER[family])
    try:
        steerings = carried(lm, share=1.0)
        plain = generate(lm, PROMPTS, decoding=NEW, engine=engine)
        assert plain == generate(lm, PROMPTS, decoding=NEW)
        found = {n: _same(lm, engine, steerings[n]) for n in [*CONSTANTS, "ascent", "several", "contest", "in front"]}
        assert all(found.values()), [name for name, same in found.items() if not same]
        changed = [n for n in found if generate(lm, PROMPTS, steerings[n], NEW) != plain]
        assert len(changed) > len(found) / 2
    finally:
        engine.close()


@pytest.mark.slow
def test_a_family_that_is_computed_otherwise_is_refused(tmp_path: Path) -> None:
    """Gemma 2, with the tied head that vLLM knows alone: its states differ by 0.1 %, more than rounding."""
    lm, engine = build(tmp_path, "gemma2", {**LIKE_LLAMA, "tie_word_embeddings": True})
    try:
        with pytest.raises(SteerbenchError, match=r"does not compute what transformers does with .* without edits"):
            generate(lm, PROMPTS, decoding=NEW, engine=engine)
    finally:
        engine.close()


def _same(lm: LanguageModel, engine: VllmEngine, steering: Steering) -> bool:
    return generate(lm, PROMPTS, steering, NEW, engine=engine) == generate(lm, PROMPTS, steering, NEW)
