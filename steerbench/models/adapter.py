"""PEFT adapters: a folder that holds what was trained beside a model, merged into that model when it is loaded."""

import json
import warnings
from pathlib import Path
from typing import Any

from steerbench.errors import SteerbenchError

CONFIG = "adapter_config.json"
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def is_adapter(folder: Path) -> bool:
    """Whether a folder is that of an adapter. Raises SteerbenchError if it holds a whole model, too."""
    if not (folder / CONFIG).is_file():
        return False
    if beside := next((path.name for pattern in _WEIGHTS for path in folder.glob(pattern)), None):
        raise SteerbenchError(
            f"{folder.name!r} holds a model ({beside}) and an adapter ({CONFIG}), and it is not clear which one is "
            "meant; move one of them into a folder of its own."
        )
    return True


def base_of(folder: Path) -> str:
    """Return the name of the model that an adapter was trained beside, `org/name[@revision]` or a path."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not base:
        raise SteerbenchError(
            f"{CONFIG} of adapter {folder.name!r} names no model; write it there as base_model_name_or_path."
        )
    revision = config.get("revision")
    return f"{base}@{revision}" if revision and not Path(base).is_dir() else str(base)


def merged(model: Any, folder: Path) -> Any:
    """Return a model with an adapter in its weights, as if it had been trained whole.

    Raises SteerbenchError without the package `peft`, and for kinds that are no change of weights.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise SteerbenchError(
            f"{folder.name!r} is a PEFT adapter, and the package peft is not installed; "
            "install it: pip install 'steerbench[peft]'."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what peft calls in transformers
        adapted = PeftModel.from_pretrained(model, str(folder))
    if not hasattr(adapted.base_model, "merge_and_unload"):
        kind = adapted.peft_config["default"].peft_type.value
        raise SteerbenchError(
            f"adapter {folder.name!r} is of the kind {kind}, which cannot be merged into the weights; use a LoRA."
        )
    return adapted.merge_and_unload()
