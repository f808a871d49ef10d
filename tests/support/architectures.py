"""Tiny random models of architectures unlike those of the contract suite: hybrids, text parts, several streams."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from steerbench import LanguageModel
from steerbench.contract import tiny

_TEXT = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SSM = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2}
_GEMMA = {"head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 259, "num_kv_shared_layers": 0}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_routed_experts": 4}

CONFIGS: dict[str, dict[str, Any]] = {
    "jamba": {
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
        **{"num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False, "conv_L_cache": 3},
    "granitemoehybrid": {
        **_SSM,
        **{"layer_types": ["mamba", "attention"] * 2, "num_local_experts": 0, "shared_intermediate_size": 64},
    },
    "nemotron_h": {
        **{"layers_block_type": ["linear_attention", "full_attention", "mlp", "full_attention"], "head_dim": 8},
        **{"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1},
    },
    "gemma4_text": {
        **_GEMMA,
        **{"global_head_dim": 16, "layer_types": _ALTERNATING, "sliding_window": 16, "enable_moe_block": False},
    },
    "gemma3n_text": {
        **_GEMMA,
        **{"laurel_rank": 4, "intermediate_size": [64] * 4, "activation_sparsity_pattern": [0.0] * 4},
        "layer_types": _ALTERNATING,
    },
    "deepseek_v4": {
        **_ROUTED,
        **{"head_dim": 16, "qk_rope_head_dim": 8, "q_lora_rank": 16, "o_lora_rank": 16, "o_groups": 2},
        **{"num_key_value_heads": 1, "index_n_heads": 2, "index_head_dim": 8},
    },
    "bert": {"is_decoder": True},
    "roberta": {"is_decoder": True},
    "mpt": {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64, "max_position_embeddings": None},
    "bloom": {"n_layer": 4, "n_head": 4},
    "xlstm": {"hidden_size": 64, "qk_dim_factor": 1.0, "num_hidden_layers": 2},
}
"""Architecture -> what its configuration has beside or instead of the sizes of all."""

_VISION = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
_IMAGES = {**_VISION, "image_size": 28, "patch_size": 14}
_LLAMA = {**_TEXT, "model_type": "llama"}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}

WITH_IMAGES: dict[str, dict[str, Any]] = {
    "llava_next": {
        **{"text_config": _LLAMA, "image_token_index": 258, "image_grid_pinpoints": [[28, 28]]},
        "vision_config": {**_IMAGES, "model_type": "clip_vision_model", "projection_dim": 32},
    },
    "idefics3": {
        **{"text_config": _LLAMA, "image_token_id": 258, "scale_factor": 1},
        "vision_config": {**_IMAGES, "model_type": "idefics3_vision"},
    },
    "qwen2_5_vl": {
        **{"text_config": {**_TEXT, "rope_parameters": _MROPE}, "image_token_id": 258},
        "vision_config": {
            "depth": 4,
            "hidden_size": 32,
            "num_heads": 4,
            "intermediate_size": 64,
            "out_hidden_size": 32,
        },
    },
}
"""Vision-language models, most with as many and heavier blocks in the vision tower."""


def language_model(kind: str) -> LanguageModel:
    """Return a random model of an architecture, in float32, with weights large enough that every edit shows."""
    return LanguageModel(_randomised(kind), tiny.tokenizer(), name=f"tiny-{kind}", revision="seed-0")


def _randomised(kind: str) -> PreTrainedModel:
    auto: Any = AutoModelForImageTextToText if kind in WITH_IMAGES else AutoModelForCausalLM
    sizes = WITH_IMAGES[kind] if kind in WITH_IMAGES else {**_TEXT, **CONFIGS[kind]}
    torch.manual_seed(0)
    model: PreTrainedModel = auto.from_config(AutoConfig.for_model(kind, **sizes)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim > 1 and "A_log" not in name and "conv" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model
