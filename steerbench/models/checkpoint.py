"""Frozen Hugging Face models from a folder or the Hub: loaded quietly, without remote code, and never untrained."""

import json
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer
from transformers.utils import logging

from steerbench import testbed
from steerbench.errors import SteerbenchError
from steerbench.models.revision import display_name, folder_revision, is_folder, split_name

# no consolidated.safetensors, onnx or tf copies of the same weights
_DOWNLOAD = ["model*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.tiktoken", "*.jinja"]
_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError, pickle.UnpicklingError)


class Source(NamedTuple):
    """A model's files."""

    name: str
    """Hub id or folder name, without path or revision."""
    revision: str
    """Commit on the Hub, or `sha256:...` of a local folder."""
    folder: Path


def find(name: str) -> Source:
    """Return the files of `name`: a local folder, or `org/name[@revision]`, downloaded if it is not in the cache."""
    name = testbed.part_path(name)
    check_path(name)
    if is_folder(name):
        folder = Path(name).expanduser()
        return Source(display_name(name), folder_revision(folder), folder)
    folder = _download(name)
    return Source(display_name(name), folder.name, folder)


def check_path(name: str) -> None:
    """Raise SteerbenchError if `name` is a path and no model folder is there; says nothing about the Hub."""
    folder = Path(name).expanduser()
    if is_folder(name) and not folder.is_dir():
        raise SteerbenchError(f"there is no model folder at {name!r}; check the path.")
    if is_folder(name) and not (folder / "config.json").is_file():
        raise SteerbenchError(f"{name!r} is not a model folder: it has no config.json; check the path.")


def _download(name: str) -> Path:
    """Return the snapshot folder of the Hub, named by its commit. Pickled weights only if there are no others."""
    repository, revision = split_name(name)
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=_DOWNLOAD))
        if not any(folder.glob("model*.safetensors")):
            snapshot_download(repository, revision=folder.name, allow_patterns=["pytorch_model*.bin"])
    except (OSError, ValueError) as error:  # all errors of huggingface_hub are one of the two
        raise SteerbenchError(
            f"model {name!r} is neither a local folder nor could it be fetched from the Hub ({brief(error)}). "
            "Check the name, the network and, for a gated model, HF_TOKEN; or pass the path of a downloaded folder."
        ) from error
    return folder


def load_model(auto_class: Any, source: Source, dtype: torch.dtype | str) -> tuple[Any, set[str]]:
    """Return the frozen model in evaluation mode, and the weights the checkpoint lacks, which are random now."""
    try:
        with quiet():
            model, info = auto_class.from_pretrained(
                source.folder, dtype=dtype, output_loading_info=True, trust_remote_code=False
            )
    except _LOAD_ERRORS as error:
        raise SteerbenchError(
            f"model {source.name!r} cannot be loaded as {auto_class.__name__}: {brief(error)} "
            "Use a complete checkpoint of an architecture that transformers supports without remote code."
        ) from error
    return model.eval().requires_grad_(False), set(info["missing_keys"])


def load_tokenizer(source: Source) -> Any:
    """Return the tokenizer. Refuses a folder without one: `transformers` would make up an empty vocabulary."""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    except _LOAD_ERRORS as error:
        raise SteerbenchError(
            f"the tokenizer of model {source.name!r} cannot be loaded: {brief(error)} Save it beside the model."
        ) from error
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if not any((source.folder / file).is_file() for file in files):
        raise SteerbenchError(f"model {source.name!r} has no tokenizer files; save its tokenizer in the same folder.")
    return tokenizer


def tensor_files(source: Source) -> dict[str, Path]:
    """Return tensor name -> file of a checkpoint, without loading the weights; pickles are read weights-only."""
    folder = source.folder
    for file in (_SAFE, f"{_SAFE}.index.json", _PICKLED, f"{_PICKLED}.index.json"):
        if (folder / file).is_file():
            return {tensor: folder / shard for tensor, shard in _shards(source, folder / file).items()}
    raise SteerbenchError(f"model {source.name!r} has no weights ({_SAFE} or {_PICKLED}); download it again.")


def _shards(source: Source, path: Path) -> dict[str, str]:
    try:
        if path.suffix == ".json":
            return dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return dict.fromkeys(file.keys(), path.name)
        return dict.fromkeys(_unpickle(path), path.name)
    except _LOAD_ERRORS as error:
        raise SteerbenchError(
            f"{path.name} of model {source.name!r} cannot be read: {brief(error)} Download it again."
        ) from error


def _unpickle(path: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(
        path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
    )
    return weights


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """Read one tensor of a checkpoint file."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor
    return _unpickle(path)[name].clone()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the loading reports and bars of `transformers`, then restore what the user had set."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def brief(error: BaseException, length: int = 200) -> str:
    """Return an error's message as one line of at most `length` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else f"{text[: length - 1]}…"
