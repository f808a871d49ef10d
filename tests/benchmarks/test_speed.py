"""Speed of the engine's pieces: `make bench`. Compare rows of one run only; machines differ and drift."""

from typing import Any

import pytest
import torch

from steerbench import Steering
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.engine.generate import generate_fixed
from steerbench.engine.install import Editor
from steerbench.engine.positions import Positions
from steerbench.learn import Tokens, activations
from steerbench.models.language_model import Batch
from steerbench.models.sites import Place

ADD = Add(torch.full((tiny.WIDTH,), 0.1))
STEERINGS = {
    "unsteered": Steering(),
    "add": Steering(edits=(PlacedEdit(Site("resid_post", 1), ADD),)),
    "add_everywhere": Steering(edits=tuple(PlacedEdit(Site("resid_post", i), ADD) for i in range(tiny.LAYERS))),
}


@pytest.mark.parametrize("name", STEERINGS)
def test_decode_32_tokens(benchmark: Any, name: str) -> None:
    lm = tiny.language_model("llama")
    benchmark(generate_fixed, lm, [user("Hi")], STEERINGS[name], 32)


@pytest.mark.parametrize("width", [64, 4096])
def test_one_edit_of_a_decode_step(benchmark: Any, width: int) -> None:
    """The hook alone, on an activation of (8 rows, 1 position, width)."""
    mask = torch.ones(8, 5, dtype=torch.long)
    positions = Positions(Batch(torch.zeros(8, 5, dtype=torch.long), mask, [5] * 8), [2], cached=True)
    positions.advance(torch.zeros(8, 5, dtype=torch.long))
    positions.advance(torch.zeros(8, 1, dtype=torch.long))
    edit = PlacedEdit(Site("resid_post", 0), Add(torch.ones(width)))
    benchmark(Editor([edit], positions, Place(torch.nn.Linear(1, 1), "output")), torch.randn(8, 1, width))


def test_bookkeeping_of_a_decode_step(benchmark: Any) -> None:
    mask = torch.ones(8, 5, dtype=torch.long)
    positions = Positions(Batch(torch.zeros(8, 5, dtype=torch.long), mask, [5] * 8), [2], cached=True)
    positions.advance(torch.zeros(8, 5, dtype=torch.long))
    benchmark(positions.advance, torch.zeros(8, 1, dtype=torch.long))


@pytest.mark.parametrize("pool", ["last_prompt", "response_mean"])
def test_read_activations_of_64_sequences(benchmark: Any, pool: Any) -> None:
    lm = tiny.language_model("llama")
    sequences = [Tokens(tuple(range(5, 20)), tuple(range(5, 15 + i % 7))) for i in range(64)]
    benchmark(activations, lm, Site("resid_post", 1), sequences, pool)
