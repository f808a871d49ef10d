"""Names and revisions of models: which exact weights a score came from, without the path they lay at."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from steerbench import testbed
from steerbench.errors import SteerbenchError

_FILES = (
    "*.safetensors",
    "pytorch_model*.bin",
    "*.json",
    "*.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "*.jinja",
    "*/chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "1_Pooling/config.json",
)
"""What can change an output: weights, configuration, tokenizer, chat templates, pooling. Not the README."""
_LOADED = b'"local_files_only": true', b'"local_files_only": false'


def is_folder(name: str) -> bool:
    """Whether `name` can only mean a local folder or GGUF file: it exists, or is written as a path."""
    return name.startswith((".", "/", "~")) or name.endswith(".gguf") or Path(name).is_dir()


def split_name(name: str) -> tuple[str, str | None]:
    """Split `org/name@revision` of the Hub into its two parts; a local folder has no revision part."""
    if is_folder(name) or "@" not in name:
        return name, None
    repository, _, revision = name.rpartition("@")
    return repository, revision or None


def display_name(name: str) -> str:
    """Return what a record may show: the Hub id without its revision, or the last part of a path, after its testbed."""
    if not is_folder(name):
        return split_name(name)[0]
    folder = Path(name).expanduser().resolve()
    home = testbed.around(folder)
    return f"{home.name}/{folder.name}" if home else folder.name


def folder_revision(path: Path) -> str:
    """Return `sha256:...` over the names and contents of the files in a model folder that can change an output.

    The path may be that of a GGUF file, which is all of its model.
    Files are streamed; where the folder lies and when it was written do not matter.
    """
    digest = hashlib.sha256()
    folder = path.parent if path.is_file() else path
    found = [path] if path.is_file() else [p for pattern in _FILES for p in path.glob(pattern) if p.is_file()]
    for file in sorted({p.relative_to(folder).as_posix() for p in found}):
        digest.update(f"{file}\0{_content(folder / file)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _content(file: Path) -> str:
    """Return the hash of a file, one and the same whether its tokenizer was saved by an offline process or another."""
    if file.name == "tokenizer_config.json":  # into which transformers writes how it was loaded
        return hashlib.sha256(file.read_bytes().replace(*_LOADED)).hexdigest()
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def model_revision(model: Any, tokenizer: Any) -> str:
    """Return `sha256:...` of a model in memory: its weights, its configuration, its tokenizer and chat template."""
    digest = hashlib.sha256()
    about = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    words = [sorted(tokenizer.get_vocab().items()), str(tokenizer.chat_template), tokenizer.all_special_tokens]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words.append(backend.to_str() if backend else "")
    digest.update(json.dumps([about, words], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:
            raise SteerbenchError(f"the weight {name} is not in memory; give the model a name: revision='...'.")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"
