"""Models that tests load again and again: read and tried out once in a process, and copied from then on.

A folder is known by the names, sizes and times of its files, and what was tried out by the weights as well, so a model
that a test damages, retrains or writes anew is loaded and tried out as ever.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steerbench.models import checkpoint, encoder, language_model, reward, self_check

LARGEST = 64_000_000
"""Bytes of a folder above which nothing is kept."""

_loaded, _check_causal = checkpoint._loaded, self_check.check_causal
_batch, _scorer_batch = self_check.language_model_batch, self_check.scorer_batch
_models: dict[Any, Any] = {}
_right: set[Any] = set()
"""What was tried out and is right; what is not is tried again, and told again."""


def keep(patch: pytest.MonkeyPatch) -> None:
    """Let what is loaded by name be copied from what was loaded before."""
    patch.setattr(checkpoint, "_loaded", _copied)
    patch.setattr(language_model, "check_causal", _causal)
    patch.setattr(language_model, "language_model_batch", _tried)
    for module in (reward, encoder):
        patch.setattr(module, "scorer_batch", _tried_scorer)


def _copied(auto_class: Any, source: Any, dtype: Any, mapped: Any) -> Any:
    if source.base or source.gguf or mapped:
        return _loaded(auto_class, source, dtype, mapped)
    files = _files(source.folder)
    key = (auto_class, str(dtype), files)
    if key not in _models:
        made = _loaded(auto_class, source, dtype, mapped)
        if sum(size for _, size, _ in files) > LARGEST:
            return made
        made[0].kept = made[0].base_model.kept = len(_models)
        _models[key] = made
    return copy.deepcopy(_models[key])


def _files(folder: Path) -> tuple[tuple[str, int, int], ...]:
    found = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found)


def _once(model: Any, tried: Any, find: Callable[[], int | None]) -> int | None:
    if getattr(model, "kept", None) is None:
        return find()
    sums = (torch.sum(p.detach(), dtype=torch.float64).item() for p in model.parameters())
    key = (model.kept, type(model), str(model.device), tuple(sums), tried)
    if key in _right:
        return None
    found = find()
    if found is None:
        _right.add(key)
    return found


def _causal(model: Any, name: str) -> None:
    _once(model, "causal", lambda: _check_causal(model, name))


def _tried(model: Any, name: str, rows: Any, pad_id: int) -> int | None:
    return _once(model, (tuple(map(tuple, rows)), pad_id), lambda: _batch(model, name, rows, pad_id))


def _tried_scorer(name: str, forward: Any, rows: Any, pad_id: int, device: Any, dtype: Any) -> int | None:
    scorer = getattr(forward, "__self__", forward)  # an encoder's method, or a module around a model
    parts = [getattr(scorer, part, None) for part in ("_model", "model", "backbone")]
    model = next((part for part in parts if getattr(part, "kept", None) is not None), None)
    tried = (type(scorer), tuple(map(tuple, rows)), pad_id, str(device), dtype)
    return _once(model, tried, lambda: _scorer_batch(name, forward, rows, pad_id, device, dtype))
