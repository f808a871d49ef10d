"""How large a model is, by its configuration alone: what the ranges of some settings end with."""

from typing import Any

from transformers import AutoConfig

from steerbench.models.adapter import base_of, is_adapter
from steerbench.models.checkpoint import configured, quiet
from steerbench.plugins.ranges import UNKNOWN, Shape


def shape_of(name: str) -> Shape:
    """Return the shape of a model that is not loaded; nothing is known of a GGUF file. Raises SteerbenchError if there
    is no model of that name.
    """
    folder = configured(name)
    if folder.is_file():
        return UNKNOWN
    if is_adapter(folder):
        return shape_of(base_of(folder))
    try:
        with quiet():
            return shape(AutoConfig.from_pretrained(folder))
    except Exception:  # transformers has many ways to say no; loading the model says why
        return UNKNOWN


def shape(config: Any) -> Shape:
    """Return what a transformers configuration says: its last block, the heads of all blocks, the width of a state."""
    text = config.get_text_config(decoder=True)
    n_layers, n_heads, width = (
        getattr(text, key, None) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    known = {"width": width}
    if isinstance(n_layers, int):
        known["last_layer"] = n_layers - 1
        known["n_heads"] = n_layers * n_heads if isinstance(n_heads, int) else None
    return {name: value for name, value in known.items() if isinstance(value, int)}
