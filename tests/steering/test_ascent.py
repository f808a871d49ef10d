"""The ascent against the plain loop: autograd and an SGD optimiser, as the published code has it."""

import copy
import itertools

import pytest
import torch
from thorough import mostly_slow
from torch import Tensor, nn

from steerbench import SteerbenchError
from steerbench.edits import Ascent
from steerbench.learn import ValueFunction, step_for
from steerbench.steering import ascent as module


def network(depth: int, width: int, hidden: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    sizes = [width, *[hidden] * (depth - 1), 1]
    maps = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*[m for linear in maps for m in (linear, nn.ReLU())][:-1])


def by_autograd(value: nn.Module, o: Tensor, step_size: float, n_steps: int) -> Tensor:
    """Return u by n steps of plain SGD on -V(o + u)."""
    u = torch.zeros_like(o, requires_grad=True)
    optimizer = torch.optim.SGD([u], lr=step_size)
    for _ in range(n_steps):
        optimizer.zero_grad()
        (-value(o + u)).sum().backward()
        optimizer.step()
    return u.detach()


def ascent(value: nn.Sequential, step_size: float, n_steps: int) -> Ascent:
    maps = [m for m in value if isinstance(m, nn.Linear)]
    return Ascent([m.weight.detach() for m in maps], [m.bias.detach() for m in maps], step_size, n_steps)


def step_of(value: nn.Sequential, o: Tensor, n_steps: int, relative: float) -> float:
    """Return a step size at which u is about `relative` times as long as o."""
    return relative * float(o.norm() / by_autograd(value, o, 1.0, 1).norm()) / max(n_steps, 1)


def near_a_kink(value: nn.Sequential, o: Tensor, step_size: float, n_steps: int) -> Tensor:
    """Return the rows in which, on the way, a unit is so near to 0 that float32 decides whether it is active."""
    exact, x = copy.deepcopy(value).double(), o.double()
    close = torch.zeros(len(o), dtype=torch.bool)
    for _ in range(n_steps):
        h = x
        for layer in list(exact)[:-1]:
            h = layer(h)
            if isinstance(layer, nn.Linear):
                close |= (h.abs() < 2e-6 * h.abs().amax(-1, keepdim=True)).any(-1)
        x = x + by_autograd(exact, x, step_size, 1)
    return close


CASES = list(itertools.product((1, 2, 3), (1, 2, 3, 7), (1, 2, 30), (0.05, 0.5, 2.0)))


@pytest.mark.parametrize(
    ("hidden", "flips_from"), mostly_slow(itertools.product((24, 96), (1, 1024)), (24, 1024).__eq__)
)
def test_the_ascent_is_the_autograd_loop(hidden: int, flips_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLIPS_FROM", flips_from)
    compared = 0
    for seed, (depth, rows, n_steps, relative) in enumerate(CASES):
        value = network(depth, 40, hidden, seed)
        o = torch.randn(rows, 40)
        step = step_of(value, o, n_steps, relative)
        expected, found = by_autograd(value, o, step, n_steps), ascent(value, step, n_steps).shift(o)
        sure = ~near_a_kink(value, o, step, n_steps)
        error = (found - expected)[sure].norm(dim=-1) / expected[sure].norm(dim=-1).clamp_min(1e-30)
        assert error.numel() == 0 or float(error.max()) < 1e-4, (depth, rows, n_steps, relative)
        compared += int(sure.sum())
    assert compared > 0.9 * sum(rows for _, rows, _, _ in CASES)


@pytest.mark.parametrize("flips_from", mostly_slow([1, 1024], (1).__eq__))
def test_in_float64_they_agree_without_exception(flips_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLIPS_FROM", flips_from)
    for seed, (depth, rows, n_steps, relative) in enumerate(CASES):
        value = network(depth, 40, 64, seed).double()
        value = value.float().double()  # an edit keeps float32
        o = torch.randn(rows, 40, dtype=torch.float64)
        step = step_of(value, o, n_steps, relative)
        torch.testing.assert_close(
            ascent(value, step, n_steps).shift(o), by_autograd(value, o, step, n_steps), rtol=1e-5, atol=1e-9
        )


def test_both_products_are_really_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of flipped units alone give the product, as long as few flip; and many flips are noticed."""
    value, o = network(2, 40, 64, 0), torch.randn(1, 40)
    edit = ascent(value, 1.0, 1)
    product = module._Flips(edit.weights[1][0], edit.gram)
    z = o @ edit.weights[0].T
    for moved in (z, z + 0.01, z + 0.05, -z):
        torch.testing.assert_close(product(moved), (edit.weights[1] * (moved > 0)) @ edit.gram)
    monkeypatch.setattr(product, "_matrix", torch.zeros_like(edit.gram))
    before = product(-z)
    torch.testing.assert_close(product(-z + 1e-4), before)  # what has not flipped is not computed again
    assert not product(z).any()  # all flipped: computed afresh


def test_a_linear_value_gives_one_constant() -> None:
    value = network(1, 12, 0, 3)
    h = torch.randn(2, 3, 12)
    moved = ascent(value, 0.1, 30)(h, None) - h
    (weight,) = (m.weight.detach() for m in value if isinstance(m, nn.Linear))
    torch.testing.assert_close(moved, (3 * weight).expand(2, 3, 12))
    torch.testing.assert_close(moved, ascent(value, 3.0, 1)(h, None) - h)
    torch.testing.assert_close(moved, ascent(value, 0.3, 10)(h, None) - h)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("off", [(0.5, 0), (0.0, 30)])
def test_without_steps_the_state_is_untouched(depth: int, off: tuple[float, int]) -> None:
    h = torch.randn(2, 3, 12)
    assert torch.equal(ascent(network(depth, 12, 16, 0), *off)(h, None), h)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_each_position_climbs_by_itself(depth: int) -> None:
    value = network(depth, 12, 16, 1)
    edit, h = ascent(value, 0.5, 20), torch.randn(3, 5, 12)
    whole = edit(h, None)
    for row, column in itertools.product(range(3), range(5)):
        torch.testing.assert_close(edit(h[row : row + 1, column : column + 1], None)[0, 0], whole[row, column])
    with torch.no_grad():
        assert bool((value(whole) > value(h)).all())


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("flips_from", [1, 10**9])
def test_a_row_stops_where_it_has_reached_the_target(
    depth: int, flips_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row after the other, by autograd in float64: a step is taken while V is below the target, and no other."""
    monkeypatch.setattr(module, "FLIPS_FROM", flips_from)
    value, o = network(depth, 12, 16, depth).double(), torch.randn(20, 12, dtype=torch.float64)
    maps = [m for m in value if isinstance(m, nn.Linear)]
    with torch.no_grad():
        target = float(value(o).median()) + 0.05
    step, taken, wanted = step_of(value, o, 10, 0.5), [], torch.zeros_like(o)
    for i, row in enumerate(o):
        x, steps = row[None], 0
        while steps < 10 and value(x).item() < target:
            x, steps = x + by_autograd(value, x, step, 1), steps + 1
        wanted[i] = (x - row)[0]
        taken.append(steps)
    edit = Ascent([m.weight.detach() for m in maps], [m.bias.detach() for m in maps], step, 10, target)
    torch.testing.assert_close(edit.double().shift(o), wanted, rtol=1e-5, atol=1e-6)
    assert min(taken) == 0 < len(set(taken)) - 1
    torch.testing.assert_close(edit.shift(o[3:4]), wanted[3:4], rtol=1e-5, atol=1e-6)


def test_u_is_added_up_in_float32() -> None:
    """30 increments of 2e-4 move a half-precision state of 1.5 by 6e-3; added one by one they would vanish."""
    edit = Ascent([torch.full((1, 4), 2e-4)], [torch.zeros(1)], 1.0, 30)
    state = torch.full((1, 1, 4), 1.5, dtype=torch.float16)
    moved = edit(state.float(), None).half()
    assert torch.equal(moved, torch.full_like(state, 1.506))
    one_by_one = state.clone()
    for _ in range(30):
        one_by_one += 2e-4
    assert torch.equal(one_by_one, state)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("relative", [0.01, 0.1, 1.0])
def test_the_step_is_calibrated_by_relative_length(depth: int, relative: float) -> None:
    value = network(depth, 40, 64, 5)
    edit, states = ascent(value, 1.0, 30), 7 * torch.randn(50, 40)
    step = step_for(ValueFunction(tuple(edit.weights), tuple(edit.biases)), states, 30, relative)
    u = by_autograd(value, states, step, 30)
    assert float((u.norm(dim=-1) / states.norm(dim=-1)).median()) == pytest.approx(relative, rel=0.02)


def test_what_cannot_be_climbed_is_told() -> None:
    flat = ValueFunction((torch.zeros(8, 4), torch.ones(1, 8)), (torch.zeros(8), torch.zeros(1)))
    with pytest.raises(SteerbenchError, match="no usable gradient"):
        step_for(flat, torch.randn(5, 4), 30, 0.1)
    with pytest.raises(SteerbenchError, match=r"relative_norm=-0\.1 is no length"):
        step_for(flat, torch.randn(5, 4), 30, -0.1)
    assert step_for(flat, torch.randn(5, 4), 30, 0.0) == 0
    with pytest.raises(SteerbenchError, match="n_steps=-1"):
        Ascent(*flat, 0.5, -1)
    with pytest.raises(ValueError, match="1 to 3 linear maps"):
        Ascent([torch.zeros(4, 4)] * 4, [torch.zeros(4)] * 4, 0.5, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_recorded_loop_is_the_loop(depth: int) -> None:
    edit = ascent(network(depth, 64, 96, 2), 0.3, 30).cuda()
    for rows in (1, 4, 1):
        h = torch.randn(rows, 1, 64, device="cuda")
        for _ in range(2):
            torch.testing.assert_close(edit(h, None), h + edit.shift(h[:, 0])[:, None])
    assert copy.deepcopy(edit)._graph is None
