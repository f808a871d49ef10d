"""A tiny model written as a GGUF file, with the package that reads them."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from steerbench.contract import tiny
from steerbench.seeds import generator_for


def write_gguf(path: Path) -> Any:
    """Write a random Qwen2 with weights of 8 bits, and return it, with weights rounded likewise."""
    from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quants

    tokens = [*tiny.tokenizer().get_vocab(), "aa"]  # a tokenizer of GGUF has merges, at least one
    sizes = dict(hidden_size=tiny.WIDTH, intermediate_size=2 * tiny.WIDTH, num_hidden_layers=tiny.LAYERS)
    heads = dict(num_attention_heads=tiny.HEADS, num_key_value_heads=tiny.HEADS // 2)
    config = Qwen2Config(vocab_size=len(tokens), max_position_embeddings=tiny.CONTEXT, **sizes, **heads)
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = generator_for(0, "gguf")
    for name, weight in sorted(model.named_parameters()):
        weight.data = torch.randn(weight.shape, generator=generator) * (0.3 if weight.ndim > 1 else 0.1)
        weight.data += 1.0 if "norm" in name else 0.0

    writer = GGUFWriter(path, "qwen2")
    writer.add_name("tiny")
    writer.add_context_length(tiny.CONTEXT)
    writer.add_embedding_length(tiny.WIDTH)
    writer.add_block_count(tiny.LAYERS)
    writer.add_feed_forward_length(2 * tiny.WIDTH)
    writer.add_head_count(tiny.HEADS)
    writer.add_head_count_kv(tiny.HEADS // 2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokens, key=lambda token: {**tiny.tokenizer().get_vocab(), "aa": len(tokens)}[token]))
    writer.add_token_types([3] * len(tiny.SPECIAL) + [1] * (len(tokens) - len(tiny.SPECIAL)))
    writer.add_token_merges(["a a"])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = get_tensor_name_map(MODEL_ARCH.QWEN2, tiny.LAYERS)
    for name, weight in model.state_dict().items():
        kind = GGMLQuantizationType.Q8_0 if weight.ndim > 1 else GGMLQuantizationType.F32
        values = quants.quantize(weight.numpy(), kind)
        weight.copy_(torch.from_numpy(quants.dequantize(values, kind)))
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
