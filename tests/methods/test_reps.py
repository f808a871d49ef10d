"""RePS: what it takes out, what it adds, and the planted direction; its loss stands with the other losses."""

import sys
from typing import Any

import pytest
import torch
from planted_pairs import planted
from thorough import mostly_slow

from steerbench import load
from steerbench.contract import tiny
from steerbench.edits import Add

RePS: Any = load("methods", "reps")
module: Any = sys.modules[RePS.__module__]


def test_what_lies_along_the_vector_is_taken_out_and_what_lies_against_it_stays() -> None:
    h, v = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)), torch.linspace(-2, 1, 8)
    found = module.Null(v)(h, None)
    for row, given in zip(found.reshape(-1, 8), h.reshape(-1, 8), strict=True):
        along = max(float(given @ v), 0.0) / float(v @ v)
        torch.testing.assert_close(row, given - along * v)
    assert {bool(x > 0) for x in (h @ v).flatten()} == {True, False}


@pytest.mark.parametrize("seed", mostly_slow(range(5), lambda seed: seed == 0))
def test_it_finds_the_planted_direction(seed: int) -> None:
    """Adam moves all components about equally far, so the planted one has components of equal size."""
    there = planted(seed, pairs=40)
    (placed,) = RePS(layer=2, epochs=2, lr=0.02, batch_size=8).fit(there.context).edits
    assert isinstance(placed.edit, Add)
    assert float(torch.cosine_similarity(placed.edit.vector, there.residual, dim=0)) >= 0.9
    assert there.context.report["held_out_loss"][-1] < there.context.report["held_out_loss"][0]


def test_by_default_the_random_start_is_little_beside_what_is_learned() -> None:
    """Begun at a hundredth of the state's length the cosine is 0.53, and half of the vector was drawn."""
    there = planted(0, pairs=40)
    vector = RePS(layer=2, epochs=2, batch_size=8).fit(there.context).edits[0].edit.vector
    assert float(torch.cosine_similarity(vector, there.residual, dim=0)) >= 0.75


def test_the_vector_is_as_long_as_was_asked_for() -> None:
    context = planted(0, pairs=8).context
    plain, scaled = (RePS(layer=1, relative_norm=r).fit(context).edits[0].edit.vector for r in (None, 0.25))
    torch.testing.assert_close(plain / plain.norm(), scaled / scaled.norm(), rtol=1e-4, atol=1e-5)
    assert float(scaled.norm() / plain.norm()) == pytest.approx(0.25 / context.report["length"], rel=1e-4)
    assert len(plain) == tiny.WIDTH
