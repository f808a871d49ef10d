"""Contests: which of several edits act on a prompt, decided by the states of the unsteered model."""

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
from steerbench.models.sites import Place
from steerbench.steering.parts import Edit, PlacedEdit, RankedEdit


class _Begun(Edit):
    """An edit whose state is known before the first pass."""

    def __init__(self, edit: Edit, state: Any) -> None:
        super().__init__()
        self.edit, self.state = edit, state

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        return self.state

    def forward(self, h: Tensor, state: Any) -> Tensor:
        edited: Tensor = self.edit(h, state)
        return edited


@torch.no_grad()
def decided(
    model: PreTrainedModel, edits: Sequence[PlacedEdit], places: Sequence[Place], batch: Batch
) -> Sequence[PlacedEdit]:
    """Hold all contests and return the edits, each at its place, the ranked ones with the state that they begin with.

    Runs the prompts of the batch through the model as it is, so it must be called before anything is installed.
    """
    ranked = {i: p.edit for i, p in enumerate(edits) if isinstance(p.edit, RankedEdit)}
    if not ranked:
        return edits
    found = _queries(model, [places[i] for i in ranked], batch)
    queries = {i: found[places[i]] for i in ranked}
    working = {i: copy.deepcopy(edit).to(queries[i].device).eval() for i, edit in ranked.items()}
    chosen = _chosen(working, queries, _contests(working, places))
    begun = {i: _Begun(edit, edit.begin(queries[i], chosen[i])) for i, edit in working.items()}
    return [replace(p, edit=begun.get(i, p.edit)) for i, p in enumerate(edits)]


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


def _queries(model: PreTrainedModel, places: Sequence[Place], batch: Batch) -> dict[Place, Tensor]:
    """Return the states of the last prompt position at each place, (rows, width), float32."""
    prompts = _prompts(batch)
    rows, last = torch.arange(len(prompts.prompt_ends)), torch.tensor(prompts.prompt_ends) - 1
    return read(model, places, prompts, lambda h: h[rows.to(h.device), last.to(h.device)].float())


def _prompts(batch: Batch) -> Batch:
    """Return the prompts alone, right padded, whatever stands before or behind them in the batch."""
    rows = zip(batch.input_ids, batch.attention_mask.bool(), batch.prompt_ends, strict=True)
    prompts = [ids[:end][real[:end]] for ids, real, end in rows]
    mask = pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True)
    return Batch(pad_sequence(prompts, batch_first=True), mask, [len(p) for p in prompts])
