"""What travels to the process of another engine: edits, where they act, and what was decided for each prompt.

A folder of JSON and safetensors, as a saved steering is: data, never code.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from steerbench.engine.ranked import Begun, Idle, InRows, decided
from steerbench.errors import SteerbenchError
from steerbench.models.language_model import Batch, LanguageModel, Tokens
from steerbench.plugins.registry import add_plugin, plugin_files
from steerbench.steering.parts import Edit, PerPosition, PlacedEdit, RankedEdit
from steerbench.steering.steering import Steering

_PLACES, _ROWS = "places.json", "rows.safetensors"


@dataclass(frozen=True)
class Shipped:
    """An edit at a module of the other engine."""

    placed: PlacedEdit
    """Without its gate."""
    module: str
    """The path of the module in the transformers model; empty at the LM head."""
    side: Literal["input", "output"]
    """Of the module."""
    open: Tensor | None = None
    """In which prompts it acts, (prompts,), bool; None: in all."""
    state: Tensor | None = None
    """What it begins with in each prompt, (prompts, ...)."""
    values: Tensor | None = None
    """What lies on each position of the prompts, (prompts, positions, width): a state by position."""

    @property
    def by_prompt(self) -> bool:
        """Whether it differs between prompts."""
        return any(found is not None for found in (self.open, self.state, self.values))


def fault_of(edit: Edit) -> str | None:
    """Return why an edit cannot be shipped; None if it can."""
    if isinstance(edit, RankedEdit) or type(edit).start is Edit.start or not edit.start_reads_states:
        return None
    return f"the edit {type(edit).__name__}, which is computed from the states of the whole prompt"


@torch.no_grad()
def shipped(
    lm: LanguageModel, prompts: Sequence[Tokens], edits: Sequence[PlacedEdit], batch_size: int
) -> list[Shipped]:
    """Find the places of edits, ask gates, hold contests, and lay states out: for each prompt what edits begin with."""
    names = {module: name for name, module in lm.model.named_modules()}
    places = [lm.anatomy.place(p.site) for p in edits]
    paths = ["" if p.site.layer is None else names[place.module] for p, place in zip(edits, places, strict=True)]
    plain = [
        Shipped(replace(p, gate=None), path, place.side) for p, path, place in zip(edits, paths, places, strict=True)
    ]
    if not any(p.gate is not None or type(p.edit).start is not Edit.start for p in edits):
        return plain
    batches = list(lm.batches(prompts, batch_size))
    order = torch.tensor([i for rows in batches for i in rows]).argsort()
    begun = []
    for rows in batches:
        batch = lm.right_padded([prompts[i] for i in rows])
        begun.append([_begun(p, batch) for p in decided(lm.model, lm.anatomy, edits, places, batch)])
    return [_joined(one, [of_batch[i] for of_batch in begun], order) for i, one in enumerate(plain)]


def shipped_each(
    lm: LanguageModel, groups: Sequence[tuple[Sequence[Tokens], Sequence[PlacedEdit]]], batch_size: int
) -> list[Shipped]:
    """Return what `shipped` does for several steerings, each with prompts of its own, numbered one after another."""
    if len(groups) == 1:
        return shipped(lm, *groups[0], batch_size)
    found, first, total = list[Shipped](), 0, sum(len(prompts) for prompts, _ in groups)
    for prompts, edits in groups:
        rows = slice(first, first := first + len(prompts))
        found += [_among(one, rows, total) for one in shipped(lm, prompts, edits, batch_size)]
    return found


def _among(one: Shipped, rows: slice, total: int) -> Shipped:
    """Return the edit for so many prompts, of which some are its own."""

    def spread(own: Tensor | None) -> Tensor | None:
        if own is None:
            return None
        whole = own.new_zeros(total, *own.shape[1:])
        whole[rows] = own
        return whole

    opened = torch.ones(rows.stop - rows.start, dtype=torch.bool) if one.open is None else one.open
    return replace(one, open=spread(opened), state=spread(one.state), values=spread(one.values))


@dataclass(frozen=True)
class _Rows:
    """What an edit begins with in some prompts."""

    open: Tensor
    state: Tensor | None
    values: Tensor | None


def _begun(placed: PlacedEdit, batch: Batch) -> _Rows:
    edit, n = placed.edit, len(batch.prompt_ends)
    rows = torch.full((n,), not isinstance(edit, Idle))
    if isinstance(gated := edit, InRows):
        edit, rows = gated.edit, gated.rows[:, 0, 0].cpu()
    if isinstance(edit, Begun):
        return _Rows(rows, _of_rows(edit, n), None)
    if isinstance(edit, Idle) or type(edit).start is Edit.start:
        return _Rows(rows, None, None)
    width = max(tensor.shape[-1] for tensor in edit.buffers())
    mask = batch.attention_mask.bool().cpu()
    state = edit.start(torch.zeros(*mask.shape, width), mask)
    return _Rows(rows, None, state.values) if isinstance(state, PerPosition) else _Rows(rows, state, None)


def _of_rows(edit: Begun, n: int) -> Tensor:
    state = edit.state
    if not isinstance(state, Tensor) or state.ndim == 0 or len(state) != n:
        raise SteerbenchError(
            f"{type(edit.edit).__name__} begins with a state that cannot be handed to another engine; "
            f"let `begin` return one tensor that has the rows first."
        )
    return state.cpu()


def _joined(one: Shipped, begun: Sequence[_Rows], order: Tensor) -> Shipped:
    """Return the edit with what it begins with in all prompts, in their order."""
    opened = torch.cat([rows.open for rows in begun])[order]
    states = [rows.state for rows in begun if rows.state is not None]
    values = [rows.values for rows in begun if rows.values is not None]
    if not bool(opened.any()):  # what begins nowhere has no state either
        return replace(one, open=opened)
    return replace(
        one,
        open=None if bool(opened.all()) else opened,
        state=_whole(states, begun)[order] if states else None,
        values=_whole(_wide(values), begun)[order] if values else None,
    )


def _whole(found: Sequence[Tensor], begun: Sequence[_Rows]) -> Tensor:
    """Return the states of all batches, zeros for one in which no gate is open."""
    like, left = found[0], list(found)
    has = [rows.state is not None or rows.values is not None for rows in begun]
    filled = [
        left.pop(0) if there else like.new_zeros(len(rows.open), *like.shape[1:])
        for there, rows in zip(has, begun, strict=True)
    ]
    return torch.cat(filled)


def _wide(values: Sequence[Tensor]) -> list[Tensor]:
    """Pad the positions of all batches alike."""
    most = max(v.shape[1] for v in values)
    return [torch.nn.functional.pad(v, (0, 0, 0, most - v.shape[1])) for v in values]


def write(folder: Path, edits: Sequence[Shipped]) -> None:
    """Write what `read` reads. Raises SteerbenchError for an edit whose class is in no file of a method."""
    Steering(edits=tuple(one.placed for one in edits)).save(folder)
    rows = {
        f"{i}.{name}": tensor.contiguous()
        for i, one in enumerate(edits)
        for name in ("open", "state", "values")
        if (tensor := getattr(one, name)) is not None
    }
    save_file(rows, folder / _ROWS)
    places = [{"module": one.module, "side": one.side} for one in edits]
    plugins = [str(path) for path in plugin_files()]
    (folder / _PLACES).write_text(json.dumps({"places": places, "plugins": plugins}), encoding="utf-8")


def read(folder: Path) -> list[Shipped]:
    """Read what `write` wrote. Plugin files are registered, since they hold the classes of their edits."""
    record: dict[str, Any] = json.loads((folder / _PLACES).read_text(encoding="utf-8"))
    for path in record["plugins"]:
        add_plugin(path)
    edits, rows = Steering.load(folder).edits, load_file(folder / _ROWS)
    found = []
    for i, (placed, place) in enumerate(zip(edits, record["places"], strict=True)):
        tensors = {name: rows.get(f"{i}.{name}") for name in ("open", "state", "values")}
        found.append(Shipped(placed, place["module"], place["side"], **tensors))
    return found
