"""PEFT adapters: a folder that holds what was trained beside a model, merged into that model when it is loaded."""

import warnings
from pathlib import Path
from typing import Any

from steerbench.errors import SteerbenchError
from steerbench.files import read_object

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
    config = read_object(folder / CONFIG)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise SteerbenchError(
            f"{CONFIG} of adapter {folder.name!r} names no model; write it there as base_model_name_or_path."
        )
    if Path(base).expanduser().resolve() == folder.resolve():
        raise SteerbenchError(f"{CONFIG} of adapter {folder.name!r} names the adapter itself; name its model there.")
    revision = config.get("revision")
    return f"{base}@{revision}" if revision and not Path(base).is_dir() else str(base)


def merged(model: Any, folder: Path) -> Any:
    """Return a model with an adapter in its weights, as if it had been trained whole.

    Raises SteerbenchError without the package `peft`, for kinds that are no change of weights, and for an adapter that
    does not fit the model.
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
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)  # refused below
        adapted = PeftModel.from_pretrained(model, str(folder))
    if not hasattr(adapted.base_model, "merge_and_unload"):
        kind = adapted.peft_config["default"].peft_type.value
        raise SteerbenchError(
            f"adapter {folder.name!r} is of the kind {kind}, which cannot be merged into the weights; use a LoRA."
        )
    _check_read(adapted, folder)
    return adapted.merge_and_unload()


def _check_read(adapted: Any, folder: Path) -> None:
    """Refuse an adapter with weights for another model, or without some for this one: peft goes on without them."""
    from peft import get_peft_model_state_dict, load_peft_weights

    held = load_peft_weights(str(folder), device="cpu").keys()
    taken = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    unread = held - get_peft_model_state_dict(adapted, save_embedding_layers=True).keys()
    if odd := sorted(unread) or sorted(taken - held):
        does = "has weights that its model does not read" if unread else "lacks weights that it adds to its model"
        raise SteerbenchError(
            f"adapter {folder.name!r} {does}, such as {odd[0]}; check base_model_name_or_path in {CONFIG}, and save "
            f"the adapter again."
        )
