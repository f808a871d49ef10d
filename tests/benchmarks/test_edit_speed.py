"""Speed of the edit operators at the width of Llama-3-8B, in a decoding step and in a prefill, 8 rows each."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from steerbench.edits import Ablate, Add, AddInFront, Edit, Gated, RemoveBoost
from steerbench.steering import additions as edits
from steerbench.steering import projections
from steerbench.steering.parts import PerPosition

ROWS, WIDTH = 8, 4096
GATES = 5


def orthonormal(width: int) -> Tensor:
    columns: Tensor = torch.linalg.qr(torch.randn(width, GATES)).Q
    return columns.T.contiguous()


FORMS: dict[str, Callable[[int], Edit]] = {
    "Add": lambda width: Add(torch.randn(width)),
    "AddInFront": lambda width: AddInFront(torch.randn(6, width)),
    "Ablate": lambda width: Ablate(torch.randn(width)),
    "RemoveBoost": lambda width: RemoveBoost(torch.randn(width), torch.randn(width)),
    "Gated": lambda width: Gated(orthonormal(width)),
}


def test_no_operator_is_forgotten() -> None:
    here = [vars(module).items() for module in (edits, projections)]
    classes = {name: c for items in here for name, c in items if inspect.isclass(c) and issubclass(c, Edit)}
    assert set(FORMS) == {name for name, c in classes.items() if c.__module__ in (edits.__name__, projections.__name__)}


def begun(edit: Edit, h: Tensor) -> Any:
    """Return the state of an edit for a prompt, as the engine keeps it, laid out over the positions."""
    state = edit.start(h, torch.ones(h.shape[:2], dtype=torch.bool))
    return state.values if isinstance(state, PerPosition) else state


@pytest.mark.parametrize("positions", [1, 128])
@pytest.mark.parametrize("name", FORMS)
def test_operator(benchmark: Any, name: str, positions: int) -> None:
    benchmark.group = f"edit of ({ROWS}, {positions}, {WIDTH})"
    torch.manual_seed(0)
    width = WIDTH if benchmark.enabled else 64  # the default suite only asks whether it runs
    edit, h = FORMS[name](width), torch.randn(ROWS, positions, width)
    state = begun(edit, h)
    with torch.inference_mode():
        moved = benchmark(edit, h, state)
    assert moved.shape == h.shape
    assert not torch.equal(moved, h)
