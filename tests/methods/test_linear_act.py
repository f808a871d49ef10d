"""Linear-AcT against one-dimensional transport written out, layer after layer, and against a planted transport."""

from typing import Any

import pytest
import torch
from torch import Tensor

from steerbench import FitContext, SteerbenchError, Steering, load, steered
from steerbench.contract import tiny
from steerbench.edits import PlacedEdit, Site, Transport
from steerbench.learn import activations, response_logits

EXAMPLES = tiny.examples()[:12]


@pytest.fixture(scope="module")
def context() -> FitContext:
    return FitContext(lm=tiny.language_model("llama"), examples=EXAMPLES, reward=tiny.VowelReward())


def fit(context: FitContext, **fields: Any) -> Steering:
    return load("methods", "linear_act")(**fields).fit(context)


def replies(context: FitContext, layer: int, side: int, below: Steering | None = None) -> Tensor:
    """Return the mean state of each reply, (replies, width), one by one."""
    with steered(context.lm, below or Steering()):
        rows = [
            activations(context.lm, Site("resid_post", layer), [pair[side]], "response_mean")
            for pair in context.pairs()
        ]
    return torch.stack([row[0] for row in rows])


def transport(a: list[float], b: list[float]) -> tuple[float, float]:
    """Return omega and beta of one coordinate."""
    a, b = sorted(a), sorted(b)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    omega = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / sum((x - mean_a) ** 2 for x in a)
    return omega, mean_b - omega * mean_a


def test_every_layer_is_the_formula_on_what_the_layers_below_made(context: FitContext) -> None:
    steering = fit(context)
    below: tuple[PlacedEdit, ...] = ()
    for layer, placed in enumerate(steering.edits):
        edit = placed.edit
        assert isinstance(edit, Transport)
        assert (placed.site, placed.scope) == (Site("resid_post", layer), "all")
        source, target = replies(context, layer, 1, Steering(edits=below)), replies(context, layer, 0)
        for k in range(0, tiny.WIDTH, 5):
            omega, beta = transport(source[:, k].tolist(), target[:, k].tolist())
            assert float(edit.omega[k]) == pytest.approx(omega, rel=1e-3, abs=1e-3)
            assert float(edit.beta[k]) == pytest.approx(beta, rel=1e-3, abs=1e-3)
        below += (placed,)


def test_the_whole_transport_moves_the_mean_of_one_side_to_the_other(context: FitContext) -> None:
    for form in ("linear", "mean"):
        (placed,) = fit(context, layer=1, form=form).edits
        moved = placed.edit(replies(context, 1, 1)[None], None)[0]
        torch.testing.assert_close(moved.mean(0), replies(context, 1, 0).mean(0), rtol=1e-3, atol=1e-3)


def test_the_mean_alone_is_the_shift_of_caa(context: FitContext) -> None:
    (placed,) = fit(context, layer=1, form="mean", strength=0.6, scope="response").edits
    (caa,) = load("methods", "caa")(layer=1, strength=0.6).fit(context).edits  # type: ignore[call-arg]
    torch.testing.assert_close(placed.edit.constant(), caa.edit.constant(), rtol=1e-4, atol=1e-5)
    tokens = [pair.chosen for pair in context.pairs()[:3]]
    both = [dict(response_logits(context.lm, tokens, Steering(edits=(p,)))) for p in (placed, caa)]
    for i in range(3):
        torch.testing.assert_close(both[0][i], both[1][i], rtol=1e-4, atol=1e-4)


def test_it_recovers_a_planted_transport(context: FitContext) -> None:
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(400, 6, generator=generator)
    source[:, 5] = 3.0  # does not vary
    omega, beta = torch.tensor([0.5, 1.0, 2.0, 1.5, 0.8, 4.0]), torch.arange(6.0)
    target = (omega * source + beta)[torch.randperm(400, generator=generator)]
    found = load("methods", "linear_act")()._transport(source, target)  # type: ignore[attr-defined]
    torch.testing.assert_close(found.omega[:5], omega[:5])
    torch.testing.assert_close(found.beta[:5], beta[:5])
    assert (float(found.omega[5]), float(found.beta[5])) == (1.0, 0.0)


def test_the_support_is_the_range_of_the_other_replies(context: FitContext) -> None:
    (placed,) = fit(context, layer=0, support="source").edits
    assert isinstance(placed.edit, Transport)
    source = replies(context, 0, 1)
    torch.testing.assert_close(placed.edit.support, [source.amin(0), source.amax(0)])


def test_one_pair_is_too_few(context: FitContext) -> None:
    with pytest.raises(SteerbenchError, match="n_pairs must be a whole number of 2 or more, not 1"):
        fit(context, n_pairs=1)
    with pytest.raises(SteerbenchError, match="more training examples"):
        fit(FitContext(lm=context.lm, examples=EXAMPLES[:1], reward=context.reward))


def test_the_fit_does_not_hang_on_the_strength(context: FitContext) -> None:
    whole, half = fit(context), fit(context, strength=0.5)
    for one, other in zip(whole.edits, half.edits, strict=True):
        assert isinstance(one.edit, Transport)
        assert isinstance(other.edit, Transport)
        torch.testing.assert_close(one.edit.omega, other.edit.omega)
