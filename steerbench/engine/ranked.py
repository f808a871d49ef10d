"""Gates and contests: which edits act on a prompt, decided by the states of the unsteered model."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from steerbench.engine.hooks import read
from steerbench.models.language_model import Batch
from steerbench.models.sites import Anatomy, Place, Site
from steerbench.steering.parts import Edit, Gate, GatePool, PlacedEdit, RankedEdit

_Asked = tuple[Place, GatePool]
"""A place, and which positions of the prompts are read there."""


class Begun(Edit):
    """An edit whose state is known before the first pass."""

    def __init__(self, edit: Edit, state: Any) -> None:
        super().__init__()
        self.edit, self.state = edit, state

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        """Return what was decided."""
        return self.state

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Edit as the edit does."""
        edited: Tensor = self.edit(h, state)
        return edited


class InRows(Edit):
    """An edit that acts on some rows; the others stay as they are, bit for bit."""

    rows: Tensor
    """In which rows, (rows, 1, 1), bool."""

    def __init__(self, edit: Edit, rows: Tensor) -> None:
        super().__init__()
        self.edit, self.rows = edit, rows[:, None, None]

    def follow(self, rows: Tensor) -> None:
        """Take over the rows of a batch that is made of some rows of the one before."""
        self.rows = self.rows[rows.to(self.rows.device)]

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        """Start the edit in every row."""
        return self.edit.start(prompt, mask)

    def constant(self) -> Tensor | None:
        """Return what is added in each row, (rows, 1, width), where the edit adds a constant: -0.0 changes no bit."""
        constant = self.edit.constant()
        return None if constant is None else torch.where(self.rows.to(constant.device), constant, -0.0)

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Edit the rows whose gate is open."""
        return torch.where(self.rows.to(h.device), self.edit(h, state), h)


class Idle(Edit):
    """Stands where no row has its gate open; nothing is installed for it, unless somebody looks."""

    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Change nothing."""
        return h


@torch.no_grad()
def decided(
    model: PreTrainedModel,
    anatomy: Anatomy,
    edits: Sequence[PlacedEdit],
    places: Sequence[Place],
    batch: Batch,
    *,
    by_row: bool = False,
) -> Sequence[PlacedEdit]:
    """Ask all gates, hold all contests, and return the edits, each at its place, with what was decided inside.

    Ranked edits come with the state that they begin with. Runs the prompts of the batch through the model as it is, so
    it must be called before anything is installed. A gate's site is looked up first: raises SteerbenchError without it.
    `by_row` keeps what a gate decided for each row, also where it decided the same for all.
    """
    gates = {i: p.gate for i, p in enumerate(edits) if p.gate is not None}
    ranked = {i: p.edit for i, p in enumerate(edits) if isinstance(p.edit, RankedEdit)}
    if not gates and not ranked:
        return edits
    asked: dict[int, _Asked] = {i: (anatomy.place(Site.parse(gate.site)), gate.pool) for i, gate in gates.items()}
    found = _queries(model, [*asked.values(), *((places[i], "last_prompt") for i in ranked)], batch)
    begun = _begun(ranked, {i: found[places[i], "last_prompt"] for i in ranked}, places)
    edits = [replace(p, edit=begun.get(i, p.edit)) for i, p in enumerate(edits)]
    rows = {i: _open_rows(gate, found[asked[i]]) for i, gate in gates.items()}
    return [_behind_gate(p, rows[i], by_row) if i in rows else p for i, p in enumerate(edits)]


def _open_rows(gate: Gate, query: Tensor) -> Tensor:
    """Return in which rows a gate is open, (rows,), by a copy of it beside the query."""
    opened: Tensor = copy.deepcopy(gate).to(query.device).eval().opens(query)
    return opened


def _behind_gate(placed: PlacedEdit, rows: Tensor, by_row: bool) -> PlacedEdit:
    """Return the edit as it acts behind a gate that was asked: one that is open to all has no cost."""
    some = by_row or (bool(rows.any()) and not bool(rows.all()))
    edit = InRows(placed.edit, rows) if some else placed.edit if bool(rows.all()) else Idle()
    return replace(placed, edit=edit, gate=None)


def _begun(
    ranked: Mapping[int, RankedEdit], queries: Mapping[int, Tensor], places: Sequence[Place]
) -> dict[int, Begun]:
    """Hold the contests and return each ranked edit with the state that it begins with."""
    working = {i: copy.deepcopy(edit).to(queries[i].device).eval() for i, edit in ranked.items()}
    chosen = _chosen(working, queries, _contests(working, places))
    return {i: Begun(edit, edit.begin(queries[i], chosen[i])) for i, edit in working.items()}


def _contests(edits: Mapping[int, RankedEdit], places: Sequence[Place]) -> list[list[int]]:
    """Return who competes with whom: the edits of one name, but never two at one place.

    Two at one place come from one method composed with itself: each of them chooses by itself.
    """
    contests: dict[tuple[str, int], list[int]] = {}
    met: Counter[tuple[str, Place]] = Counter()
    for i, edit in edits.items():
        here = (edit.contest, places[i])
        contests.setdefault((edit.contest, met[here]), []).append(i)
        met[here] += 1
    return list(contests.values())


def _chosen(
    edits: Mapping[int, RankedEdit], queries: Mapping[int, Tensor], contests: Sequence[Sequence[int]]
) -> dict[int, Tensor]:
    """Return for each edit the rows in which it is among the best of its contest, (rows,)."""
    chosen: dict[int, Tensor] = {}
    for entrants in contests:
        scores = torch.stack([edits[i].score(queries[i]).float().cpu() for i in entrants])  # devices may differ
        ranks = scores.argsort(stable=True, dim=0, descending=True).argsort(dim=0)
        chosen |= {i: (rank < edits[i].keep).to(queries[i].device) for i, rank in zip(entrants, ranks, strict=True)}
    return chosen


def _queries(model: PreTrainedModel, asked: Sequence[_Asked], batch: Batch) -> dict[_Asked, Tensor]:
    """Return the pooled states of the prompts at each place, (rows, width), float32."""
    prompts = _prompts(batch)
    lengths = torch.tensor(prompts.prompt_ends)[:, None]

    def keep(h: Tensor) -> dict[GatePool, Tensor]:
        ends = lengths.to(h.device)
        last = torch.take_along_dim(h, (ends - 1)[..., None], dim=1)[:, 0].float()
        inside = torch.arange(h.shape[1], device=h.device) < ends
        mean = h.float().masked_fill(~inside[..., None], 0).sum(1) / ends
        return {"last_prompt": last, "prompt_mean": mean}

    found = read(model, [place for place, _ in asked], prompts, keep)
    return {(place, pool): found[place][pool] for place, pool in asked}


def _prompts(batch: Batch) -> Batch:
    """Return the prompts alone, right padded, whatever stands before or behind them in the batch."""
    rows = zip(batch.input_ids, batch.attention_mask.bool(), batch.prompt_ends, strict=True)
    prompts = [ids[:end][real[:end]] for ids, real, end in rows]
    mask = pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True)
    return Batch(pad_sequence(prompts, batch_first=True), mask, [len(p) for p in prompts])
