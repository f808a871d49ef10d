"""Steerings that another engine carries: every site, every scope, states by row and by position, gates, a contest."""

from typing import get_args

import torch
from torch import Tensor

from steerbench import LanguageModel, Steering
from steerbench.data import Dialogue, user
from steerbench.edits import (
    Ablate,
    Add,
    AddInFront,
    Ascent,
    ConditionGate,
    Edit,
    Gated,
    LowRank,
    PlacedEdit,
    Rotate,
    Scope,
    Site,
)
from steerbench.engine.activations import activations_at
from steerbench.models.sites import SiteName

PROMPTS: list[Dialogue] = [
    user(text)
    for text in (
        "How do I bake bread?",
        "Hi",
        "Can you help me choose a good book about gardens, and tell me where to read it?",
        "What is a good soup for a cold day?",
        "Why?",
        "Who can mend my bicycle before the weekend?",
    )
]


SCOPES: tuple[Scope, ...] = ("all", "prompt", "response")
CONSTANTS = [f"{name}, {scope}" for name in get_args(SiteName) for scope in SCOPES]
OTHERS = [
    "projected",
    "turned",
    "low rank",
    "in front",
    "ascent",
    "gated",
    "contest",
    "several",
    "everywhere",
    "nothing",
]
NAMES = [*CONSTANTS, *OTHERS]
"""Of the steerings that `carried` returns; `nothing` changes no token, and all others do."""


def mean_state(lm: LanguageModel, site: Site) -> Tensor:
    """Return the mean state of the prompts at a site, (width,)."""
    return torch.stack(activations_at(lm, [site], [lm.tokens(p) for p in PROMPTS], "last_prompt")[site]).mean(0)


def drawn(site: Site, lm: LanguageModel, share: float, seed: int = 0, rows: int | None = None) -> Tensor:
    """Return vectors of `share` times the length of the mean state at a site, (width,) or (rows, width)."""
    mean = mean_state(lm, site)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(rows or 1, len(mean), generator=generator)
    vectors = vectors * (share * mean.norm() / vectors.norm(dim=1, keepdim=True))
    found: Tensor = vectors if rows else vectors[0]
    return found


def carried(lm: LanguageModel, share: float = 0.4) -> dict[str, Steering]:
    """Return steerings by name; those of `CONSTANTS` add a vector at a site, by a scope.

    `share` is the length of these vectors, in units of the mean state.
    """
    return {**_constants(lm, share), **_others(lm)}


def _constants(lm: LanguageModel, share: float) -> dict[str, Steering]:
    found: dict[str, Steering] = {}
    for name in get_args(SiteName):
        site = Site(name, None if name == "final" else lm.n_layers // 2)
        for scope in SCOPES:
            placed = PlacedEdit(site, Add(drawn(site, lm, share, seed=len(found))), scope)
            found[f"{name}, {scope}"] = Steering(edits=(placed,))
    return found


def _others(lm: LanguageModel) -> dict[str, Steering]:
    site, first = Site("resid_post", lm.n_layers // 2), Site("resid_pre", 0)
    mean, plane = mean_state(lm, site), torch.linalg.qr(drawn(site, lm, 1.0, 1, rows=2).T).Q.T
    width = len(mean)

    def at(edit: Edit, where: Site = site, gate: ConditionGate | None = None) -> Steering:
        return Steering(edits=(PlacedEdit(where, edit, "response", gate),))

    return {
        "projected": at(Ablate(mean, strength=0.7)),
        "turned": at(Rotate(plane, 60.0)),
        "low rank": at(LowRank(plane * 0.2, drawn(site, lm, 0.2, 3, rows=2).T)),
        "in front": Steering(edits=(PlacedEdit(first, AddInFront(drawn(first, lm, 0.8, 4, rows=3), 1), "prompt"),)),
        "ascent": at(ascent(lm), Site("final")),
        "gated": at(Add(drawn(site, lm, 0.5, 5)), gate=half_open(lm)),
        "contest": contest(lm, plane),
        "several": at(Add(drawn(site, lm, 0.2, 6))) + at(Ablate(mean)) + at(ascent(lm), Site("final")),
        "everywhere": Steering(
            edits=tuple(
                PlacedEdit(Site("z", i), Add(drawn(Site("z", i), lm, 0.2, i)), "all") for i in range(lm.n_layers)
            )
        ),
        "nothing": at(Add(torch.zeros(width))),
    }


def ascent(lm: LanguageModel) -> Ascent:
    """Return an ascent on a random value function of states at the LM head."""
    site, generator = Site("final"), torch.Generator().manual_seed(7)
    mean = mean_state(lm, site)
    first = torch.randn(16, len(mean), generator=generator) / mean.norm()
    second = torch.randn(1, 16, generator=generator)
    step = 0.05 * float(mean.norm()) ** 2
    return Ascent([first, second], [torch.zeros(16), torch.zeros(1)], step, 5)


def half_open(lm: LanguageModel) -> ConditionGate:
    """Return a gate that is open for half of the prompts."""
    site = Site("resid_post", lm.n_layers // 2)
    states = activations_at(lm, [site], [lm.tokens(p) for p in PROMPTS], "last_prompt")[site]
    direction = torch.randn(len(states[0]), generator=torch.Generator().manual_seed(8))
    along = torch.stack(states) @ direction / direction.norm()
    return ConditionGate(str(site), direction, float(along.median()), measure="component", pool="last_prompt")


def contest(lm: LanguageModel, plane: Tensor) -> Steering:
    """Return three edits of which two act on each prompt."""
    edits = []
    for k in range(3):
        site = Site("resid_post", k % lm.n_layers)
        size = float(mean_state(lm, site).norm())
        directions = plane.roll(k + 1, dims=1)
        edits.append(PlacedEdit(site, Gated(directions, 0.5, contest="c", keep=2, step=size)))
    return Steering(edits=tuple(edits))
