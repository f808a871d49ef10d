"""GGUF control vectors, as llama.cpp reads them with `--control-vector` and repeng writes them.

`direction.N` is added to the output of block N, counted from 0. llama.cpp has no place for the first block's.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerbench.errors import SteerbenchError
from steerbench.exchange.layer_vectors import LayerVectors, checked

_ARCHITECTURE = "controlvector"


def write_control_vector(path: Path, vectors: LayerVectors, model_type: str) -> None:
    """Write vectors with the model type of their language model, such as `llama`, as a hint for readers."""
    if 0 in vectors:
        raise SteerbenchError("llama.cpp adds no control vector to the first block; fit it at another layer.")
    writer = gguf().GGUFWriter(path, _ARCHITECTURE)
    writer.add_string(f"{_ARCHITECTURE}.model_hint", model_type)
    writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(vectors))
    for layer, vector in sorted(vectors.items()):
        writer.add_tensor(f"direction.{layer}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_control_vector(path: Path) -> dict[int, Tensor]:
    """Read the vectors of a file. Raises SteerbenchError if it holds none."""
    try:
        reader = gguf().GGUFReader(path)
        field = reader.get_field("general.architecture")
        architecture = field and field.contents()
        named = {tensor.name: tensor.data for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise SteerbenchError(f"{path} is no GGUF file: {error}") from error
    if architecture != _ARCHITECTURE:
        raise SteerbenchError(f"{path} is a GGUF file of {architecture}, not a control vector.")
    directions = {name.removeprefix("direction."): data for name, data in named.items()}
    if not directions or not all(layer.isdecimal() for layer in directions):
        raise SteerbenchError(f"{path} holds tensors that are no directions: {', '.join(sorted(named)) or 'none'}.")
    return checked({int(layer): torch.tensor(data) for layer, data in directions.items()}, str(path))


def gguf() -> Any:
    """Return the package that reads and writes the files. Raises SteerbenchError where it is missing."""
    try:
        import gguf
    except ImportError as error:
        raise SteerbenchError("GGUF files need the package gguf: pip install 'steerbench[gguf]'.") from error
    return gguf
