"""Whether another engine computes what transformers does: states at the LM head, with edits and without.

What is compared is a few tokens behind two prompts of different lengths, generated there and read here. So no list of
families is needed, and a module of the same name that does something else is found out.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steerbench.engine.activations import drawn_from
from steerbench.engine.hooks import read, watched
from steerbench.engine.install import steered
from steerbench.engine.positions import Positions
from steerbench.models.language_model import Batch, LanguageModel, Tokens
from steerbench.models.modes import evaluating
from steerbench.models.sites import Site
from steerbench.steering.additions import Add
from steerbench.steering.parts import PlacedEdit, Scope

_TEXT = "How do I bake a loaf of bread that keeps for a week, and what does it need?"
_LENGTHS = (5, 12)
_SCOPES: tuple[Scope, ...] = ("response", "all", "prompt")
_SHARE = 0.3
"""Length of the vectors of a trial, in units of the mean length of the states that they are added to."""


class Trial(NamedTuple):
    """What another engine made of some prompts."""

    prompts: Sequence[Tokens]
    found: Sequence[Sequence[int]]
    """The new ids of each."""
    states: Mapping[tuple[int, int], Sequence[float]]
    """The state at the LM head, by prompt and position."""


def trial_prompts(lm: LanguageModel) -> list[Tokens]:
    """Return two prompts of different lengths."""
    ids = (lm.text_tokens(_TEXT).prompt * max(_LENGTHS))[: max(_LENGTHS)]
    return [Tokens(ids[:length]) for length in _LENGTHS]


@torch.no_grad()
def edits_to_try(lm: LanguageModel, sites: Sequence[Site]) -> list[PlacedEdit]:
    """Return an edit at each site: a vector drawn for it, of a length that the states there feel."""
    places = [lm.anatomy.place(site) for site in sites]
    batch = lm.right_padded(trial_prompts(lm)[-1:])
    norms = read(lm.model, places, batch, lambda h: (h.shape[-1], float(h.float().norm(dim=-1).mean())))
    generator = torch.Generator().manual_seed(0)
    found = []
    for i, (site, place) in enumerate(zip(sites, places, strict=True)):
        width, norm = norms[place]
        vector = torch.randn(width, generator=generator)
        found.append(PlacedEdit(site, Add(vector * (_SHARE * norm / vector.norm())), _SCOPES[i % len(_SCOPES)]))
    return found


def told_apart(lm: LanguageModel, edits: Sequence[PlacedEdit], trial: Trial) -> str | None:
    """Return in what the engine differs from transformers under the edits; None if it does not."""
    texts = [Tokens(p.prompt, tuple(ids)) for p, ids in zip(trial.prompts, trial.found, strict=True)]
    wanted = _states(lm, texts, edits)
    tolerance = torch.finfo(lm.dtype).eps ** 0.5
    largest = max(float(state.abs().max()) for state in wanted)
    gaps = []
    for i, (text, states) in enumerate(zip(texts, wanted, strict=True)):
        begin = len(text.prompt) - 1
        keys = [(i, begin + t) for t in range(len(states))]
        if any(key not in trial.states for key in keys):
            return "it did not show the states of all tokens"
        gaps.append(float((torch.tensor([trial.states[key] for key in keys]) - states).abs().max()))
    gap = max(gaps)
    if gap <= tolerance * largest:
        return None
    return f"the states at the LM head differ by {gap:.2g}, and are {largest:.2g} at most"


@torch.no_grad()
def _states(lm: LanguageModel, texts: Sequence[Tokens], edits: Sequence[PlacedEdit]) -> list[Tensor]:
    """Return the states at the LM head that the response of each text was drawn from, (tokens, width), float32."""
    batch: Batch = lm.right_padded(texts)
    positions = Positions(batch, [], cached=False)
    kept: list[Tensor] = []

    def keep(activation: Tensor) -> None:
        kept.append(activation.reshape(*batch.input_ids.shape, -1).float().cpu())

    head = lm.anatomy.place(Site("final"))
    with evaluating(lm.model), steered(lm.model, lm.anatomy, edits, positions), watched(head, keep):
        lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    return [row[drawn_from(text)] for row, text in zip(kept[-1], texts, strict=True)]
