"""Frozen models from a folder, a GGUF file or the Hub: loaded quietly, without remote code, and never untrained."""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoTokenizer
from transformers.utils import logging

from steerbench import testbed
from steerbench.errors import SteerbenchError
from steerbench.models.adapter import CONFIG as ADAPTER_CONFIG
from steerbench.models.adapter import base_of, is_adapter, merged
from steerbench.models.revision import display_name, folder_revision, is_folder, split_name

# no consolidated.safetensors, onnx or tf copies of the same weights
_DOWNLOAD = [
    "model*.safetensors",
    "adapter_model*.safetensors",
    "*.json",
    "*.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "*.jinja",
]
_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError, pickle.UnpicklingError)


class Source(NamedTuple):
    """A model's files."""

    name: str
    """Hub id or folder name, without path or revision."""
    revision: str
    """Commit on the Hub, or `sha256:...` of a local folder."""
    folder: Path
    gguf: str | None = None
    """The file in the folder that is the whole model, tokenizer included."""
    base: "Source | None" = None
    """The model that a PEFT adapter in the folder belongs to."""


def find(name: str) -> Source:
    """Return the files of `name`: a local folder or GGUF file, or `org/name[@revision]`, downloaded if it is not here.

    A folder may hold a PEFT adapter, whose model is found as well.
    """
    name = testbed.part_path(name)
    check_path(name)
    path = Path(name).expanduser() if is_folder(name) else _download(name)
    revision = folder_revision(path) if is_folder(name) else path.name
    if path.is_file():
        return Source(display_name(name), revision, path.parent, gguf=path.name)
    if not is_adapter(path):
        return Source(display_name(name), revision, path)
    base = find(base_of(path))
    both = hashlib.sha256(f"{revision}\0{base.revision}".encode()).hexdigest()
    return Source(display_name(name), f"sha256:{both}", path, base=base)


def check_path(name: str) -> None:
    """Raise SteerbenchError if `name` is a path and no model is there; says nothing about the Hub."""
    path = Path(name).expanduser()
    if path.is_file() and path.suffix != ".gguf":
        raise SteerbenchError(f"{name!r} is a file; give the folder of a model, a .gguf file, or a name on the Hub.")
    if not is_folder(name) or (path.is_file() and path.suffix == ".gguf"):
        return
    if not path.is_dir():
        raise SteerbenchError(f"there is no model folder at {name!r}; check the path.")
    if not (path / "config.json").is_file() and not (path / ADAPTER_CONFIG).is_file():
        files = sorted(file.name for file in path.glob("*.gguf"))
        which = f"give the path of a file in it: {', '.join(files[:3])}." if files else "check the path."
        raise SteerbenchError(f"{name!r} is not a model folder: it has no config.json; {which}")


def configured(name: str) -> Path:
    """Return the folder with the configuration of a model, or its GGUF file; no weights are fetched from the Hub.

    Raises SteerbenchError if there is no model of that name.
    """
    name = testbed.part_path(name)
    check_path(name)
    return Path(name).expanduser() if is_folder(name) else _fetch(name, ["config.json", ADAPTER_CONFIG])


def _download(name: str) -> Path:
    """Return the snapshot folder of the Hub, named by its commit. Pickled weights only if there are no others."""
    folder = _fetch(name, _DOWNLOAD)
    if not any(folder.glob("*model*.safetensors")):
        _fetch(f"{split_name(name)[0]}@{folder.name}", ["pytorch_model*.bin"])
    return folder


def _fetch(name: str, patterns: list[str]) -> Path:
    repository, revision = split_name(name)
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # all errors of huggingface_hub are one of the two
        if HF_HUB_OFFLINE and isinstance(error, LocalEntryNotFoundError):
            raise SteerbenchError(
                f"model {name!r} is no local folder, and HF_HUB_OFFLINE lets nothing be fetched. Check the name, unset "
                "HF_HUB_OFFLINE, or pass the path of a downloaded folder."
            ) from error
        raise SteerbenchError(
            f"model {name!r} is neither a local folder nor could it be fetched from the Hub ({brief(error)}). "
            "Check the name, the network and, for a gated model, HF_TOKEN; or pass the path of a downloaded folder."
        ) from error


def load_model(
    auto_class: Any, source: Source, dtype: torch.dtype | str, device_map: str | None = None
) -> tuple[Any, set[str]]:
    """Return the frozen model in evaluation mode, and the weights the checkpoint lacks, which are random now.

    `device_map` is what accelerate takes to spread it over several devices, such as `auto`. Raises SteerbenchError if
    it cannot be loaded, and if it has weights that the model does not read.
    """
    if device_map and not find_spec("accelerate"):
        raise SteerbenchError(
            "--device-map needs the package accelerate, which is not installed: pip install 'steerbench[large]'."
        )
    mapped = {"device_map": device_map} if device_map else {}
    try:
        with quiet():
            model, missing, unread = _loaded(auto_class, source, dtype, mapped)
    except SteerbenchError:
        raise
    except Exception as error:  # a damaged configuration ends in any of them
        raise SteerbenchError(
            f"model {source.name!r} cannot be loaded as {auto_class.__name__}: {brief(error)} "
            "Use a complete checkpoint of an architecture that transformers supports without remote code."
        ) from error
    if unread:
        raise SteerbenchError(
            f"model {source.name!r} has weights that {type(model).__name__} does not read, such as {min(unread)}, and "
            "would be another model without them; use a checkpoint of this architecture and depth, with its adapters "
            "merged."
        )
    return model.eval().requires_grad_(False), missing


def _loaded(
    auto_class: Any, source: Source, dtype: torch.dtype | str, mapped: dict[str, str]
) -> tuple[Any, set[str], set[str]]:
    """Return the model, the weights that it lacks, and those of the checkpoint that belong to it and are not read."""
    if source.base:
        model, missing, unread = _loaded(auto_class, source.base, dtype, mapped)
        return merged(model, source.folder), missing, unread
    getLogger("bitsandbytes").setLevel(ERROR)  # it says at each product of each pass that it rounds
    model, info = auto_class.from_pretrained(
        source.folder, dtype=dtype, output_loading_info=True, trust_remote_code=False, **_gguf(source), **mapped
    )
    unread = {key for key in info["unexpected_keys"] if _belongs(key, model)}
    return model, set(info["missing_keys"]), unread | _of_more_blocks(info["unexpected_keys"], model)


def _belongs(key: str, model: Any) -> bool:
    """Tell whether a weight is of a part that the model has: of a block, or of a layer such as the head.

    Whole parts that it has not are left out on purpose: another head, a vision tower.
    """
    modules = dict(model.base_model.named_modules()) | dict(model.named_modules())
    owner = key.rpartition(".")[0]
    while owner and owner not in modules:
        owner = owner.rpartition(".")[0]
    inside = any(part.isdecimal() for part in owner.split("."))
    return bool(owner) and (inside or not any(True for _ in modules[owner].children()))


def _of_more_blocks(keys: Collection[str], model: Any) -> set[str]:
    """Return the keys of blocks like the model's own that its configuration does not count.

    Blocks of another kind predict tokens farther ahead, and are left out on purpose.
    """
    modules = dict(model.base_model.named_modules()) | dict(model.named_modules())
    found: set[str] = set()
    for name, blocks in modules.items():
        if isinstance(blocks, nn.ModuleList):
            own = {key.partition(".")[2] for key in blocks.state_dict()}
            places = {key: key.removeprefix(f"{name}.").partition(".") for key in keys if key.startswith(f"{name}.")}
            others = {index for index, _, weight in places.values() if weight not in own}
            found |= {key for key, (index, *_) in places.items() if index not in others}
    return found


def _gguf(source: Source) -> dict[str, str]:
    """Return the argument with which transformers reads a GGUF file. Raises SteerbenchError without its package."""
    if source.gguf and not find_spec("gguf"):
        raise SteerbenchError(
            f"{source.name!r} is a GGUF file, and the package gguf is not installed; "
            "install it: pip install 'steerbench[gguf]'."
        )
    return {"gguf_file": source.gguf} if source.gguf else {}


def load_tokenizer(source: Source) -> Any:
    """Return the tokenizer, of an adapter's model where the adapter has none.

    Refuses a folder without one: `transformers` would make up an empty vocabulary.
    """
    if source.base and not (source.folder / "tokenizer_config.json").is_file():
        return load_tokenizer(source.base)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, **_gguf(source))
    except SteerbenchError:
        raise
    except Exception as error:  # a damaged file ends in any of them
        raise SteerbenchError(
            f"the tokenizer of model {source.name!r} cannot be loaded: {brief(error)} Save it beside the model."
        ) from error
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if not source.gguf and not any((source.folder / file).is_file() for file in files):
        raise SteerbenchError(f"model {source.name!r} has no tokenizer files; save its tokenizer in the same folder.")
    return tokenizer


def tensor_files(source: Source) -> dict[str, Path]:
    """Return tensor name -> file of a checkpoint, without loading the weights; pickles are read weights-only."""
    if source.gguf or source.base:
        raise SteerbenchError(f"{source.name!r} is a GGUF file or an adapter; give a folder with the whole model.")
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
    bare = isinstance(error, KeyError) or not str(error)  # the message of a KeyError is the key alone
    text = " ".join((repr(error) if bare else str(error)).split())
    return text if len(text) <= length else f"{text[: length - 1]}…"
