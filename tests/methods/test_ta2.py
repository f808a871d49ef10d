"""TA2: the attack against its formula, the layer it finds, and that it has no goal that could do harm."""

import math
from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from steerbench import Decoding, FitContext, SteerbenchError, Steering, load
from steerbench.contract import tiny
from steerbench.edits import Add, Site
from steerbench.learn import activations, self_generated
from steerbench.plugins.spec import build, parse


@pytest.fixture(scope="module")
def context() -> FitContext:
    lm = tiny.language_model("llama")
    sampled = Decoding(max_new_tokens=6, temperature=1.0)
    return FitContext(lm=lm, examples=tiny.examples()[:12], reward=tiny.VowelReward(), decoding=sampled)


def fit(context: FitContext, **fields: Any) -> Steering:
    return load("methods", "ta2")(**fields).fit(context)


def sides(context: FitContext, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last states of good and bad answers, (pairs, width) each."""
    pairs = [generated.pair for generated in self_generated(context, "polite", "rude", 64).kept]
    read = [
        torch.stack([activations(context.lm, Site("resid_post", layer), [p[side]], "last_response")[0] for p in pairs])
        for side in (0, 1)
    ]
    return read[0], read[1]


def test_the_shift_goes_from_good_to_bad_answers(context: FitContext) -> None:
    (placed,) = fit(context, strength=2.0, relative_norm=0.2).edits
    assert isinstance(placed.edit, Add)
    assert placed.site.layer is not None
    good, bad = sides(context, placed.site.layer)
    toward = bad.mean(0) - good.mean(0)
    length = torch.cat([good, bad]).norm(dim=1).mean()
    expected = 2 * 0.2 * length * toward / toward.norm()
    torch.testing.assert_close(placed.edit.constant(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("select", ["separation", "js"])
def test_the_layer_of_the_first_half_is_where_the_sides_are_furthest_apart(context: FitContext, select: str) -> None:
    (placed,) = fit(context, select=select).edits
    apart = []
    for layer in range(math.ceil(tiny.LAYERS / 2)):
        good, bad = sides(context, layer)
        if select == "js":
            rows = zip(good.softmax(-1).double().numpy(), bad.softmax(-1).double().numpy(), strict=True)
            apart.append(sum(jensenshannon(p, q) ** 2 for p, q in rows) / len(good))
        else:
            apart.append(float((good.mean(0) - bad.mean(0)).norm() / torch.cat([good, bad]).norm(dim=1).mean()))
        assert context.report["apart"][f"resid_post.{layer}"] == pytest.approx(apart[-1], rel=1e-3)
    assert placed.site.layer == apart.index(max(apart))


def test_there_are_three_goals_and_none_of_them_does_harm() -> None:
    for goal in ("rude", "useless", "confused"):
        assert build(parse(f"ta2:goal={goal}")[0])
    with pytest.raises(SteerbenchError, match="goal"):
        build(parse("ta2:goal=harmful")[0])
