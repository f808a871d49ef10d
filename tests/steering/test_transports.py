"""Transport and rotation: against their formulas, one coordinate and one state at a time."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from steerbench import SteerbenchError, Steering
from steerbench.edits import Add, PlacedEdit, Rotate, Site, Transport

WIDTH = 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plane() -> Tensor:
    axes: Tensor = torch.linalg.qr(draw(WIDTH, 2)).Q.T.contiguous()
    return axes


def test_a_transport_is_the_formula_inside_of_its_support() -> None:
    omega, beta, h = draw(WIDTH, seed=1), draw(WIDTH, seed=2), draw(2, 3, WIDTH, seed=3)
    low, high = torch.full((WIDTH,), -0.5), torch.full((WIDTH,), 0.8)
    found = Transport(omega, beta, 0.3, [low, high])(h, None)
    for row, column, k in torch.cartesian_prod(*map(torch.arange, h.shape)).tolist():
        x = float(h[row, column, k])
        moved = 0.7 * x + 0.3 * (float(omega[k]) * x + float(beta[k]))
        assert float(found[row, column, k]) == pytest.approx(moved if -0.5 <= x <= 0.8 else x, abs=1e-5)


def test_no_share_of_a_transport_is_the_state_and_omega_one_a_shift() -> None:
    h, beta = draw(2, 3, WIDTH), draw(WIDTH, seed=2)
    assert torch.equal(Transport(draw(WIDTH, seed=1), beta, 0.0)(h, None), h)
    mean = Transport(torch.ones(WIDTH), beta, 0.4)
    torch.testing.assert_close(mean(h, None), Add(beta, 0.4)(h, None))
    assert torch.equal(torch.as_tensor(mean.constant()), Add(beta, 0.4).constant())
    assert Transport(draw(WIDTH), beta).constant() is None
    assert Transport(torch.ones(WIDTH), beta, 1.0, [-beta.abs(), beta.abs()]).constant() is None


@pytest.mark.parametrize("strength", [-0.1, 1.5])
def test_a_strength_that_is_no_share_is_refused(strength: float) -> None:
    with pytest.raises(SteerbenchError, match="0 to 1"):
        Transport(torch.ones(2), torch.ones(2), strength)


@pytest.mark.parametrize("angle", [0.0, 75.0, 200.0])
def test_a_rotation_is_the_formula(angle: float) -> None:
    h, (b1, b2) = draw(2, 3, WIDTH), plane()
    found = Rotate(plane(), angle)(h, None)
    p = torch.outer(b1, b1) + torch.outer(b2, b2)
    aim = math.cos(math.radians(angle)) * b1 + math.sin(math.radians(angle)) * b2
    for state, turned in zip(h.flatten(0, 1), found.flatten(0, 1), strict=True):
        torch.testing.assert_close(turned, state - p @ state + (p @ state).norm() * aim, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(turned.norm(), state.norm())
        torch.testing.assert_close(turned - p @ turned, state - p @ state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, Rotate(plane(), angle + 360)(h, None), rtol=1e-4, atol=1e-5)


def test_at_its_own_angle_a_state_stays() -> None:
    h, (b1, b2) = draw(1, 1, WIDTH), plane()
    own = math.degrees(math.atan2(float(h[0, 0] @ b2), float(h[0, 0] @ b1)))
    torch.testing.assert_close(Rotate(plane(), own)(h, None), h, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(Rotate(plane(), own + 20)(h, None), h, atol=1e-2)


def test_one_sided_turns_what_leans_to_the_direction() -> None:
    h, (b1, _) = draw(1, 20, WIDTH), plane()
    found, all_turned = Rotate(plane(), 40.0, one_sided=True)(h, None), Rotate(plane(), 40.0)(h, None)
    leans = (h @ b1) > 0
    assert 0 < int(leans.sum()) < 20
    assert torch.equal(found, torch.where(leans[..., None], all_turned, h))


def test_they_come_back_from_files(tmp_path: Path) -> None:
    bounds = [torch.zeros(WIDTH), torch.ones(WIDTH)]
    edits = [Transport(draw(WIDTH), draw(WIDTH), 0.5), Transport(draw(WIDTH), draw(WIDTH), 1.0, bounds)]
    placed = tuple(PlacedEdit(Site("resid_post", 0), edit) for edit in (*edits, Rotate(plane(), 30.0, 0.5, True)))
    Steering(edits=placed).save(tmp_path)
    again = Steering.load(tmp_path)
    assert again.digest() == Steering(edits=placed).digest()
    for one, other in zip(placed, again.edits, strict=True):
        assert torch.equal(one.edit(draw(1, 4, WIDTH), None), other.edit(draw(1, 4, WIDTH), None))
