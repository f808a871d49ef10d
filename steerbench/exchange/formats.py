"""Files of vectors in the formats of other libraries, told apart by what is in them."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from steerbench.errors import SteerbenchError
from steerbench.exchange.control_vector import gguf, read_control_vector, write_control_vector
from steerbench.exchange.layer_vectors import LayerVectors, checked, layer_vectors, steering_of
from steerbench.files import write_whole
from steerbench.models.language_model import LanguageModel
from steerbench.steering.steering import Steering

Recipe = Mapping[str, Any]
"""Where vectors come from: method, model with its revision, task, seed, hash of the steering."""


def write_vectors(path: Path, form: str, steering: Steering, lm: LanguageModel, recipe: Recipe) -> None:
    """Write the vectors of a steering in one of `FORMATS`. Raises SteerbenchError where it is not made of vectors."""
    FORMATS[form](path, layer_vectors(steering), lm, recipe)


def check_format(form: str) -> None:
    """Raise SteerbenchError if what writes a format is not installed: before a fit, that may take long."""
    if form == "gguf":
        gguf()


def read_steering(path: Path) -> Steering:
    """Read a saved steering or a file of vectors, whichever it is. Files are data and never code.

    Raises SteerbenchError if it is none of them.
    """
    if path.is_dir():
        return Steering.load(path)
    if not path.is_file():
        raise SteerbenchError(f"there is no file {path}; check the path.")
    read = _READERS.get(path.suffix)
    if read is None:
        raise SteerbenchError(f"{path} is of no known kind; vectors are in {', '.join(sorted(_READERS))} files.")
    return steering_of(read(path))


def _write_gguf(path: Path, vectors: LayerVectors, lm: LanguageModel, recipe: Recipe) -> None:
    write_control_vector(path, vectors, lm.model.config.model_type)


def _write_safetensors(path: Path, vectors: LayerVectors, lm: LanguageModel, recipe: Recipe) -> None:
    tensors = {f"layer.{layer}": vector.contiguous() for layer, vector in vectors.items()}
    write_whole(path, save(tensors, {"recipe": json.dumps(recipe, sort_keys=True)}))


def _write_layers(path: Path, vectors: LayerVectors, lm: LanguageModel, recipe: Recipe) -> None:
    """Write what `SteeringVector(layer_activations=torch.load(path))` of steering-vectors takes."""
    torch.save(dict(vectors), path)


def _write_lm_eval(path: Path, vectors: LayerVectors, lm: LanguageModel, recipe: Recipe) -> None:
    """Write what lm-evaluation-harness reads with `--model steered --model_args steer_path=...`."""
    names = {module: name for name, module in lm.model.base_model.named_modules()}
    steered = {
        names[lm.anatomy.blocks[layer]]: {
            "steering_vector": vector,
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for layer, vector in vectors.items()
    }
    torch.save(steered, path)


FORMATS: Final[Mapping[str, Callable[[Path, LayerVectors, LanguageModel, Recipe], None]]] = {
    "gguf": _write_gguf,
    "safetensors": _write_safetensors,
    "steering-vectors": _write_layers,
    "lm-eval": _write_lm_eval,
}
"""Writers of vectors, by the name of the format."""


def _read_safetensors(path: Path) -> dict[int, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            named = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise SteerbenchError(f"{path} is no safetensors file ({error}); write it again.") from error
    return checked({_layer(name, path): tensor for name, tensor in named.items()}, str(path))


def _read_torch(path: Path) -> dict[int, Tensor]:
    """Read a dictionary of tensors by layer, or one of lm-evaluation-harness; anything that runs code is refused."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what it likes for what is no file of tensors
        raise SteerbenchError(f"{path} holds more than tensors, or is damaged; write it as safetensors.") from error
    if not isinstance(found, dict):
        raise SteerbenchError(f"{path} holds a {type(found).__name__}, not vectors by layer.")
    return checked({_layer(str(name), path): _scaled(value, path) for name, value in found.items()}, str(path))


def _layer(name: str, path: Path) -> int:
    """Return the block that a name ends with: `layer.13`, `layers.13`, `13`."""
    match = re.fullmatch(r"(?:.*\.)?(\d+)", name)
    if match is None:
        raise SteerbenchError(f"{path}: {name!r} names no block; what is known is `layers.13`, `layer.13` or 13.")
    return int(match[1])


def _scaled(value: Any, path: Path) -> Any:
    """Return a vector; one of lm-evaluation-harness is multiplied by its coefficient."""
    if not isinstance(value, dict):
        return value
    if value.get("action") != "add" or value.get("head_index") is not None or value.get("bias") is not None:
        raise SteerbenchError(f"{path}: only vectors that are added to whole activations can be read.")
    vector = value.get("steering_vector")
    return vector * float(value.get("steering_coefficient", 1.0)) if isinstance(vector, Tensor) else vector


_READERS: Final = {
    ".gguf": read_control_vector,
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
}
