"""ODESteer: its classifier against sketched features, and its flow against autograd, Euler and bounds."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.kernel_approximation import PolynomialCountSketch
from torch import Tensor
from torch.nn.functional import normalize

from steerbench import FitContext, LanguageModel, SteerbenchError, load
from steerbench.contract import tiny
from steerbench.learn import Contrast

ODESteer: Any = load("methods", "ode_steer")
module: Any = sys.modules[ODESteer.__module__]
GENERATOR = torch.Generator().manual_seed(0)
STATES = 3 * torch.randn(2, 5, 8, generator=GENERATOR)


def form() -> Tensor:
    drawn = torch.randn(8, 8, generator=GENERATOR)
    return drawn + drawn.T


def test_a_sketch_is_undone_exactly() -> None:
    """The quadratic function is, but for a constant, what the weights make of sketched features of any state."""
    generator = np.random.default_rng(0)
    states, weights = generator.normal(size=(20, 6)), generator.normal(size=40)
    sketch = PolynomialCountSketch(gamma=0.1, degree=2, coef0=1, n_components=40, random_state=3).fit(states)
    matrix, vector = (t.double().numpy() for t in module.unsketched(sketch, weights))
    wanted = sketch.transform(states) @ weights
    found = np.einsum("ni,ij,nj->n", states, matrix, states) + states @ vector
    np.testing.assert_allclose(found - found[0], wanted - wanted[0], rtol=1e-4, atol=1e-5)


def test_the_flow_is_eulers_along_the_unit_gradient() -> None:
    quadratic, linear = form(), torch.randn(8, generator=GENERATOR)
    moved = STATES.reshape(-1, 8).clone()
    for _ in range(4):
        h = moved.clone().requires_grad_()
        x = h / h.norm(dim=1, keepdim=True)
        f = torch.einsum("ni,ij,nj->n", x, quadratic, x) + x @ linear
        (gradient,) = torch.autograd.grad(f.sum(), [h])
        moved = moved + 2.0 / 4 * gradient / gradient.norm(dim=1, keepdim=True)
    found = module.Flow(quadratic, linear, 2.0, 4)(STATES, None)
    torch.testing.assert_close(found.reshape(-1, 8), moved, rtol=1e-4, atol=1e-4)


def test_no_time_is_no_way_and_the_way_is_no_longer_than_the_time() -> None:
    quadratic, linear = form(), torch.randn(8, generator=GENERATOR)
    assert torch.equal(module.Flow(quadratic, linear, 0.0, 10)(STATES, None), STATES)
    way = (module.Flow(quadratic, linear, 2.0, 10)(STATES, None) - STATES).norm(dim=-1)
    assert float(way.max()) <= 2 + 1e-4
    assert float(way.min()) > 0.5


def test_steps_across_a_linear_function_are_one_addition() -> None:
    """Where the state is so long that it hardly turns, all steps go the same way: what is across the state of w."""
    w = torch.randn(8, generator=GENERATOR)
    h = 1e4 * normalize(torch.randn(8, generator=GENERATOR), dim=0)
    across = normalize(w - (w @ h) * h / h.square().sum(), dim=0)
    for n in (1, 7):
        moved = module.Flow(torch.zeros(8, 8), w, 3.0, n)(h[None], None)[0]
        torch.testing.assert_close(moved - h, 3 * across, rtol=1e-2, atol=1e-2)


def test_it_raises_the_log_odds_of_states_it_did_not_see() -> None:
    """Preferred states lie in both directions of an axis, others near 0: no single shift tells them apart.

    Features are small, a tenth of products of components of a unit vector, so that the penalty is strong.
    """
    axis, noise = torch.eye(16)[0], torch.randn(200, 16, generator=GENERATOR)
    half = Contrast(noise[:100] + 4 * axis, noise[100:])
    sides = Contrast(*(torch.cat([rows, -rows]) for rows in half))
    found = module.classifier(sides, 2000, 0)
    assert found.accuracy > 0.7
    fresh = torch.randn(50, 16, generator=GENERATOR)
    fresh[:, 0] = fresh[:, 0].sign() * 0.5
    moved = module.Flow(found.form, found.linear, 2.0, 10)(fresh, None)
    change = (moved[:, 0] - fresh[:, 0]) * fresh[:, 0].sign()
    assert float((change > 0.5).float().mean()) > 0.9


def test_a_length_of_its_own(llama: LanguageModel) -> None:
    context = FitContext(lm=llama, examples=tiny.examples()[:8], reward=tiny.VowelReward())
    (placed,) = ODESteer(relative_norm=0.2, features=100).fit(context).edits
    assert placed.edit.time == pytest.approx(context.report["time"])
    assert context.report["relative_norm"] == pytest.approx(0.2)
    with pytest.raises(SteerbenchError, match="n_steps must be a whole number of 1 or more, not 0"):
        ODESteer(n_steps=0, features=100).fit(context)
