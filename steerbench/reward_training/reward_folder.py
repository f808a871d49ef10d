"""The folder of a reward: what loads as `--reward-model`, the manifest, and a card for people."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from steerbench.data.task import Example
from steerbench.errors import SteerbenchError
from steerbench.files import write_whole
from steerbench.models.pooled_block import HEAD, MODEL_TYPE, PooledForm, is_pooled
from steerbench.models.training_prompts import FILE, trained_on
from steerbench.reward_training.bradley_terry import Head
from steerbench.reward_training.evidence import failing


def prepare(out: Path) -> None:
    """Make the folder. Raises SteerbenchError if it holds something that is no reward of this form."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        others = any(out.iterdir()) and not is_pooled(out)
    except OSError as error:
        raise SteerbenchError(f"cannot write {out}: {error.strerror or error}; choose another --out.") from error
    if others:
        raise SteerbenchError(f"{out} holds something that is no reward of `steerbench reward train`; choose another.")


def write_reward(out: Path, form: PooledForm, head: Head, trained: Iterable[Example]) -> None:
    """Write what a reward is: its form, the head, and the prompts that it was trained on."""
    weights = {HEAD[0]: torch.tensor(head.weight).float(), HEAD[1]: torch.tensor([head.bias]).float()}
    write_weights(out, weights)
    write_whole(out / FILE, trained_on(trained).write())
    write_whole(out / "config.json", form.write())


def write_weights(out: Path, weights: Mapping[str, Tensor]) -> None:
    """Write head and blocks."""
    write_whole(out / "model.safetensors", save({k: v.contiguous() for k, v in weights.items()}))


def tell(out: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest and the card."""
    write_whole(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    write_whole(out / "README.md", card(manifest))


def card(manifest: Mapping[str, Any]) -> str:
    """Return the card of a reward: what it is, how good it is, and what it must not be used for."""
    held, backbone = manifest["held out"], manifest["backbone"]
    lines = [
        f"# A reward for {manifest['task']['name']}",
        "",
        f"Bradley-Terry on {manifest['pairs']['train']:,} pairs{_of_half(manifest)}: a linear head on block "
        f"{manifest['block']} of {backbone['name']}, {manifest['pooling']}. Form `{MODEL_TYPE}`; use it with "
        f"`steerbench run --reward-model`.",
        "",
        f"On {held['pairs']:,} held-out pairs of {held['groups']:,} groups, with 95 % intervals:",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {shown(value)} |" for name, value in held.items() if name not in ("pairs", "groups")),
        "",
        "How often the preferred reply beats a damaged one:",
        "",
        "| probe | preferred wins |",
        "|---|---|",
        *(f"| {name} | {shown(figures)} |" for name, figures in manifest["probes"].items()),
        "",
        *verdicts(manifest),
    ]
    return "\n".join(lines) + "\n"


_NO_BETTER = "It is not surely better than preferring the longer reply: do not use it as a reward."
_WEAK = (
    "It is weak: not surely better than preferring the longer reply, by which a length-neutral reward may not go, "
    "and surely better than chance on replies of nearly equal length."
)


def _of_half(manifest: Mapping[str, Any]) -> str:
    return f" (half {manifest['half']} of the prompts)" if "half" in manifest else ""


def verdicts(manifest: Mapping[str, Any]) -> list[str]:
    """Return what a user must know: whether it beats length, and which damage it does not see."""
    held = manifest["held out"]
    found = []
    if (held["accuracy over longer wins"]["low"] or 0.0) <= 0:
        at_equal = (held.get("accuracy at equal length", {}).get("low") or 0.0) > 0.5
        found.append(_WEAK if manifest.get("length neutral") and at_equal else _NO_BETTER)
    if missed := failing(manifest["probes"]):
        found.append(f"It does not see damage: {', '.join(missed)} replies do not lose. Read gains beside damage.")
    return found


def shown(value: Any) -> str:
    """Return a figure as text, with its interval where it has one."""
    if not isinstance(value, Mapping):
        return f"{value:.3f}"
    if "mean" not in value:
        return ", ".join(f"{name} {number:.3f}" for name, number in value.items())
    n = value.get("pairs", value.get("prompts"))
    ends = f" ({value['low']:.3f} to {value['high']:.3f})" if value["low"] is not None else ""
    return f"{value['mean']:.3f}{ends}" + (f", n = {n}" if n else "")
