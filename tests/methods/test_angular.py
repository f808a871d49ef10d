"""Angular steering: the plane against its definition."""

from typing import Any

import pytest
import torch

from steerbench import FitContext, Steering, load
from steerbench.contract import tiny
from steerbench.edits import Rotate, Site
from steerbench.learn import contrast

EXAMPLES = tiny.examples()[:12]


@pytest.fixture(scope="module")
def context() -> FitContext:
    return FitContext(lm=tiny.language_model("llama"), examples=EXAMPLES, reward=tiny.VowelReward())


def fit(context: FitContext, **fields: Any) -> Steering:
    return load("methods", "angular")(**fields).fit(context)


def test_the_plane_holds_the_direction_of_its_layer_and_the_component_of_all(context: FitContext) -> None:
    directions = []
    for layer in range(tiny.LAYERS):
        states = contrast(context, Site("resid_post", layer), "response_mean")
        difference = states.preferred.mean(0) - states.other.mean(0)
        directions.append(difference / difference.norm())
    centred = torch.stack(directions) - sum(directions) / len(directions)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    axis = vectors[:, values.argmax()]
    (placed,) = fit(context, layer=1, angle=50.0, strength=0.7).edits
    edit = placed.edit
    assert isinstance(edit, Rotate)
    assert (edit.angle, edit.strength, placed.site) == (50.0, 0.7, Site("resid_post", 1))
    b1, b2 = edit.plane
    torch.testing.assert_close(b1, directions[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(edit.plane @ edit.plane.T, torch.eye(2), rtol=1e-4, atol=1e-5)
    rejected = axis - (axis @ b1) * b1
    assert abs(float(rejected @ b2) / float(rejected.norm())) == pytest.approx(1.0, abs=1e-4)


def test_at_no_angle_all_of_the_plane_points_to_preferred_replies(context: FitContext) -> None:
    (placed,) = fit(context, strength=1.0).edits
    assert isinstance(placed.edit, Rotate)
    h = torch.randn(1, 5, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    inside = placed.edit(h, None) @ placed.edit.plane.T
    torch.testing.assert_close(inside[..., 0], (h @ placed.edit.plane.T).norm(dim=-1))
    assert float(inside[..., 1].abs().max()) < 1e-5


def test_it_turns_one_layer_or_all_behind_it(context: FitContext) -> None:
    assert [p.site.layer for p in fit(context, layer=1).edits] == [1]
    assert [p.site.layer for p in fit(context, layer=1, layers="from_there").edits] == [1, 2]
