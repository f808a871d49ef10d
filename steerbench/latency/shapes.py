"""Models made from a configuration alone, with random weights: as fast as the real one, and nothing to download."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from steerbench import testbed
from steerbench.errors import SteerbenchError
from steerbench.models.checkpoint import brief, find, load_tokenizer, quiet
from steerbench.models.language_model import LanguageModel
from steerbench.models.response import Response
from steerbench.models.revision import is_folder

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "dtype": "bfloat16",
    },
    "vicuna-7b": {  # version 1.5, a Llama 2
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "dtype": "float16",
    },
    "falcon-7b": {
        "model_type": "falcon",
        "vocab_size": 65024,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "alibi": False,  # rotary positions instead
        "bias": False,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "dtype": "bfloat16",
    },
}
"""Name -> what the configuration of the published model says about its shape."""


class RandomModel(LanguageModel):
    """A model with random weights and the tokenizer of the testbed, whose vocabulary is smaller than the model's.

    A generated id that the tokenizer lacks is read as one that it has, so that responses have as many words as those
    of a trained model: methods learn from them, and a choice among candidates reads them.
    """

    def cut(self, ids: Sequence[int]) -> Response:
        """Cut generated ids into a response, in ids of the tokenizer."""
        known = len(self.tokenizer)
        return super().cut([i % known for i in ids])


def random_model(
    config: str, *, device: torch.device, dtype: torch.dtype | None = None, seed: int = 0
) -> LanguageModel:
    """Return a model of a shape of `SHAPES`, or of a `config.json` or the folder of one, with random weights.

    The weights are made on the device and in their type, so that there is never another copy of them. `dtype` defaults
    to float32 on a CPU and to the configuration's own, or bfloat16, on a GPU. Raises SteerbenchError if there is no
    such configuration, if it is not one of a causal language model, or if its vocabulary is too small.
    """
    shape = _read(config)
    tokenizer = load_tokenizer(find(testbed.NAME))
    _check_vocabulary(config, shape, len(tokenizer))
    given = torch.float32 if device.type == "cpu" else shape.dtype or torch.bfloat16
    model = _made(config, shape, device, dtype or given, seed)
    return RandomModel(model, tokenizer, name=_label(config), revision=f"random weights, seed {seed}")


def _made(config: str, shape: PreTrainedConfig, device: torch.device, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """Make the weights where they will be used. The random numbers of the process stay as they were."""
    gpus = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(gpus), torch.device(device), quiet():
            torch.manual_seed(seed)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(shape, dtype=dtype)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise SteerbenchError(
            f"no causal language model can be made from --config {config}: {brief(error)} "
            f"Give the config.json of an architecture that transformers supports without remote code."
        ) from error
    model.generation_config = GenerationConfig()  # the configuration's end tokens are those of another tokenizer
    return model.eval().requires_grad_(False)


def _read(config: str) -> PreTrainedConfig:
    if config in SHAPES:
        return AutoConfig.for_model(**SHAPES[config])
    path = Path(config).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        where = f"{path} has no config.json" if is_folder(config) else f"{config!r} is none of {', '.join(SHAPES)}"
        raise SteerbenchError(
            f"--config: {where}; give one of {', '.join(SHAPES)}, or the path of a config.json or of its folder."
        )
    try:
        with quiet():
            return AutoConfig.from_pretrained(file, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SteerbenchError(f"{file} cannot be read: {brief(error)} Give the config.json of a model.") from error


def _check_vocabulary(config: str, shape: PreTrainedConfig, needed: int) -> None:
    found = shape.get_text_config(decoder=True).vocab_size
    if found < needed:
        raise SteerbenchError(
            f"--config {config} has a vocabulary of {found}, and the testbed's tokenizer, which writes the prompts, "
            f"needs {needed}; raise its vocab_size."
        )


def _label(config: str) -> str:
    """Return the name for records: the shape's, or that of the folder that holds the config.json."""
    if config in SHAPES:
        return config
    path = Path(config).expanduser().resolve()
    return path.parent.name if path.name == "config.json" else path.stem
