"""Speed of RE-Control: the ascent beside the loop it replaces, and what it adds to decoding on the testbed.

`autograd` is the loop as the published code has it, which also computes gradients of the weights; `frozen` spares them.
Rows of one group are comparable. The shape is that of Llama-3-8B: states and hidden layers of 4096, 30 steps.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steerbench import LanguageModel, Steering
from steerbench.data import user
from steerbench.edits import Ascent, PlacedEdit, Site
from steerbench.engine.generate import generate_fixed
from steerbench.testbed import Testbed, named

pytestmark = pytest.mark.usefixtures("two_threads")

WIDTH, STEPS, RELATIVE_NORM = 4096, 30, 0.1


def network(layers: int, width: int) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [width] * layers + [1]
    maps = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*maps[:-1])


def climb(value: nn.Module, o: Tensor, step_size: float) -> Tensor:
    u = torch.zeros_like(o, requires_grad=True)
    optimizer = torch.optim.SGD([u], lr=step_size)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(-value(o + u).sum())
        optimizer.step()
    return u.detach()


def ascent(value: nn.Sequential, step_size: float) -> Ascent:
    maps = [m for m in value if isinstance(m, nn.Linear)]
    return Ascent([m.weight.detach() for m in maps], [m.bias.detach() for m in maps], step_size, STEPS)


@pytest.mark.parametrize("kind", ["ascent", "frozen", "autograd"])
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("layers", [2, 3])
def test_thirty_steps(benchmark: Any, layers: int, rows: int, kind: str) -> None:
    benchmark.group = f"30 steps, {layers} layers, {rows} rows"
    width = WIDTH if benchmark.enabled else 64  # the default suite only asks whether it runs
    value, o = network(layers, width).requires_grad_(kind == "autograd"), torch.randn(rows, width)
    step_size = RELATIVE_NORM * float(o.norm() / climb(value, o, 1.0).norm())
    edit = ascent(value, step_size)
    with torch.inference_mode(kind == "ascent"):
        moved = benchmark(edit.shift, o) if kind == "ascent" else benchmark(climb, value, o, step_size)
    torch.testing.assert_close(moved, climb(value, o, step_size), rtol=0.1, atol=0.01)


@pytest.mark.parametrize("name", ["unsteered", "re_control 2", "re_control 3"])
def test_decode_32_tokens_on_the_testbed(benchmark: Any, name: str) -> None:
    benchmark.group = "32 tokens of the testbed"
    home = named("testbed")
    assert isinstance(home, Testbed)
    torch.set_num_threads(1)
    lm = LanguageModel.load(home.part("lm"))
    edits: tuple[PlacedEdit, ...] = ()
    if name != "unsteered":
        edit = ascent(network(int(name[-1]), lm.model.config.hidden_size), 1.0)
        edits = (PlacedEdit(Site("final"), edit),)
    benchmark(generate_fixed, lm, [user("How do I bake bread?")], Steering(edits=edits), 32)
