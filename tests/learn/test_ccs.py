"""CCS against the plain form: loops over pairs, and one linear layer per restart, trained by autograd."""

import math
import runpy
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from thorough import mostly_slow
from torch import Tensor, nn

from steerbench import SteerbenchError
from steerbench.learn import Contrast, difference_of_means
from steerbench.learn import ccs as module
from steerbench.learn.ccs import CCS, ccs_loss, fit_ccs

SEEDS = range(10)
CENTRES = ["none", "joint", "class"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy(seed: int, width: int = 64, n_pairs: int = 400) -> Contrast:
    """Pairs `base +- 1.5 u` with noise and a base that they share: the side is all that is in them."""
    draw = generator(1000 + seed)
    u = torch.nn.functional.normalize(torch.randn(width, generator=draw), dim=0)
    base = torch.randn(n_pairs, width, generator=draw)
    noise = 0.3 * torch.randn(2, n_pairs, width, generator=draw)
    return Contrast(base + 1.5 * u + noise[0], base - 1.5 * u + noise[1])


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


@cache
def raw(seed: int) -> tuple[Contrast, CCS]:
    """Return a toy with the probe fitted to it."""
    contrast = toy(seed)
    return contrast, fit_ccs(contrast, generator(seed))


# The loss and its gradient


def naive_loss(p0: list[Tensor], p1: list[Tensor]) -> Tensor:
    confidence = consistency = torch.zeros((), dtype=torch.float64)
    for a, b in zip(p0, p1, strict=True):
        confidence = confidence + torch.min(a, b) ** 2
        consistency = consistency + (a - (1 - b)) ** 2
    return confidence / len(p0) + consistency / len(p0)


def test_loss_is_that_of_a_loop_over_pairs() -> None:
    p0, p1 = torch.rand(2, 7, 3, generator=generator(0), dtype=torch.float64)
    expected = torch.stack([naive_loss(list(p0[:, i]), list(p1[:, i])) for i in range(3)])
    torch.testing.assert_close(ccs_loss(p0, p1), expected)


def test_loss_of_known_answers() -> None:
    """Sure and consistent costs nothing; undecided 1/4, no to both 1, yes to both 1 + 1."""
    p0, p1 = torch.tensor([[0.0, 0.5, 0.0, 1.0]]), torch.tensor([[1.0, 0.5, 0.0, 1.0]])
    assert ccs_loss(p0, p1).tolist() == [0.0, 0.25, 1.0, 2.0]


def test_gradient_is_that_of_a_loop_over_pairs() -> None:
    """Also where both sides of a pair have the same state, and so the same probability."""
    draw = generator(1)
    sides = torch.randn(2, 6, 5, generator=draw, dtype=torch.float64)
    sides[1, 2] = sides[0, 2]
    weights, biases = torch.randn(4, 5, generator=draw).double(), torch.randn(4, generator=draw).double()
    by_weights, by_biases = module._Probes(weights, biases).gradient(sides)
    for i in range(4):
        w, b = weights[i].clone().requires_grad_(), biases[i].clone().requires_grad_()
        p0, p1 = ([torch.sigmoid(sum(x * w) + b) for x in side] for side in sides)
        torch.autograd.backward(naive_loss(p0, p1))
        torch.testing.assert_close(by_weights[i], w.grad)
        torch.testing.assert_close(by_biases[i], b.grad)


# Training


def naive_fit(sides: Tensor, seed: int, restarts: int, epochs: int, lr: float, decay: float) -> list[nn.Linear]:
    """Train one linear layer after the other."""
    torch.manual_seed(seed)
    layers = [nn.Linear(sides.shape[-1], 1) for _ in range(restarts)]
    for layer in layers:
        optimizer = torch.optim.AdamW(layer.parameters(), lr=lr, weight_decay=decay, fused=False, foreach=False)
        for _ in range(epochs):
            optimizer.zero_grad()
            torch.autograd.backward(loss_of(layer, sides))
            optimizer.step()
    return layers


def loss_of(layer: nn.Linear, sides: Tensor) -> Tensor:
    p0, p1 = torch.sigmoid(layer(sides))[..., 0]
    loss: Tensor = torch.minimum(p0, p1).pow(2).mean() + (p0 - (1 - p1)).pow(2).mean()
    return loss


def naive_sides(contrast: Contrast, centre: str) -> Tensor:
    x0, x1 = contrast.other, contrast.preferred
    if centre == "joint":
        mean = torch.cat([x0, x1]).mean(0)
        return torch.stack([x0 - mean, x1 - mean])
    if centre == "class":
        return torch.stack([x0 - x0.mean(0), x1 - x1.mean(0)])
    return torch.stack([x0, x1])


@pytest.mark.parametrize("centre", CENTRES)
def test_a_restart_is_a_linear_layer_trained_by_autograd(centre: Any) -> None:
    contrast, draw = toy(0, width=20, n_pairs=15), generator(3)
    sides = naive_sides(contrast, centre)
    for layer in naive_fit(sides, 3, 4, 40, lr=1e-2, decay=0.5):
        probe = fit_ccs(contrast, draw, centre=centre, restarts=1, epochs=40, lr=1e-2, weight_decay=0.5)
        torch.testing.assert_close(probe.weight, layer.weight[0].detach(), rtol=1e-4, atol=1e-5)
        assert probe.bias == pytest.approx(float(layer.bias.detach()), rel=1e-4, abs=1e-5)
        assert probe.loss == pytest.approx(float(loss_of(layer, sides).detach()), rel=1e-5)


def test_restarts_train_as_each_would_alone_and_the_lowest_loss_is_kept() -> None:
    contrast, draw = toy(0, width=20, n_pairs=15), generator(3)
    alone = [fit_ccs(contrast, draw, restarts=1, epochs=40, lr=1e-2) for _ in range(5)]
    best = min(alone, key=lambda probe: probe.loss)
    assert best not in (alone[0], alone[-1])
    together = fit_ccs(contrast, generator(3), restarts=5, epochs=40, lr=1e-2)
    torch.testing.assert_close(together.weight, best.weight, rtol=1e-4, atol=1e-5)
    assert (together.bias, together.loss) == pytest.approx((best.bias, best.loss), rel=1e-4)


def test_a_whole_training_stays_with_the_plain_form() -> None:
    contrast = toy(1, width=12, n_pairs=30)
    probe = fit_ccs(contrast, generator(5), restarts=1)
    sides = naive_sides(contrast, "none")
    (layer,) = naive_fit(sides, 5, 1, 1000, lr=1e-3, decay=0.01)
    torch.testing.assert_close(probe.weight, layer.weight[0].detach(), rtol=1e-3, atol=1e-4)
    assert probe.loss == pytest.approx(float(loss_of(layer, sides).detach()), rel=1e-4)


def test_defaults_are_the_published_ones() -> None:
    contrast = toy(2, width=8, n_pairs=10)
    published: dict[str, Any] = {"restarts": 10, "epochs": 1000, "lr": 1e-3, "weight_decay": 0.01, "centre": "none"}
    default, named = fit_ccs(contrast, generator(0)), fit_ccs(contrast, generator(0), **published)
    assert torch.equal(default.weight, named.weight)
    assert (default.bias, default.loss) == (named.bias, named.loss)


def test_equal_generators_give_equal_probes_whatever_else_is_drawn() -> None:
    contrast = toy(3, width=8, n_pairs=10)
    before = [side.clone() for side in contrast]
    torch.manual_seed(0)
    first = fit_ccs(contrast, generator(1), epochs=50)
    torch.manual_seed(1)
    second, third = (fit_ccs(contrast, generator(seed), epochs=50) for seed in (1, 2))
    assert torch.equal(first.weight, second.weight)
    assert (first.bias, first.loss) == (second.bias, second.loss)
    assert not torch.equal(first.weight, third.weight)
    assert all(torch.equal(a, b) for a, b in zip(before, contrast, strict=True))


# What is found


@pytest.mark.slow
def test_raw_states_give_the_difference_of_means_up_to_its_sign() -> None:
    cosines = [cosine(probe.weight, difference_of_means(contrast)) for contrast, probe in map(raw, SEEDS)]
    assert min(abs(c) for c in cosines) > 0.85
    assert min(cosines) < 0 < max(cosines)


@pytest.mark.parametrize("seed", mostly_slow(SEEDS, range(3).__contains__))
def test_class_means_tell_the_sign(seed: int) -> None:
    contrast, probe = raw(seed)
    found = probe.direction(contrast)
    assert found is not None
    assert cosine(found, difference_of_means(contrast)) > 0.85
    assert float(found.norm()) == pytest.approx(1)


@pytest.mark.parametrize("seed", mostly_slow(range(3), lambda seed: seed == 0))
def test_swapped_sides_point_the_other_way(seed: int) -> None:
    contrast, probe = raw(seed)
    swapped = Contrast(contrast.other, contrast.preferred)
    found, flipped = probe.direction(contrast), probe.direction(swapped)
    refitted = fit_ccs(swapped, generator(seed)).direction(swapped)
    assert found is not None
    assert flipped is not None
    assert refitted is not None
    assert torch.equal(flipped, -found)
    assert cosine(refitted, found) < -0.999


@pytest.mark.parametrize("seed", mostly_slow(range(3), lambda seed: seed == 0))
def test_joint_centring_finds_it_too_wherever_the_states_lie(seed: int) -> None:
    contrast = toy(seed)
    away = Contrast(contrast.preferred + 30, contrast.other + 30)
    found = fit_ccs(away, generator(seed), centre="joint").direction(away)
    assert found is not None
    assert cosine(found, difference_of_means(contrast)) > 0.85


@pytest.mark.parametrize("seed", mostly_slow(range(3), lambda seed: seed == 0))
def test_centring_each_class_loses_it(seed: int) -> None:
    """The normalisation of Burns et al. subtracts what preferred and other replies differ by."""
    contrast = toy(seed)
    probe = fit_ccs(contrast, generator(seed), centre="class")
    assert abs(cosine(probe.weight, difference_of_means(contrast))) < 0.35
    assert probe.direction(contrast) is None


# The fitted probe


def probe(weight: list[float], bias: float = 0.0, centres: list[list[float]] | None = None) -> CCS:
    return CCS(torch.tensor(weight), bias, 0.0, torch.tensor(centres or [[0.0] * len(weight)] * 2))


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        (0.0, [1.0, 0.0]),
        (1.9, [1.0, 0.0]),
        (-1.9, [1.0, 0.0]),
        (2.1, None),
        (-2.1, None),
        (2.0, None),
        (math.nan, None),
    ],
)
def test_the_means_must_lie_on_both_sides_of_one_half(bias: float, expected: list[float] | None) -> None:
    """p at the means is sigmoid(2 + bias) and sigmoid(-2 + bias)."""
    contrast = Contrast(torch.tensor([[0.0, 7.0], [2.0, 7.0]]), torch.tensor([[-3.0, 7.0], [1.0, 7.0]]))
    for sign in (1, -1):
        found = probe([2.0 * sign, 0.0], bias * sign).direction(contrast)
        assert (None if found is None else found.tolist()) == expected


def test_probability_subtracts_the_centre_of_the_side() -> None:
    fitted = probe([1.0, -2.0], 0.5, [[1.0, 1.0], [3.0, 0.0]])
    states = torch.tensor([[4.0, 1.0], [0.0, 0.0]])
    for side, centre in (("other", (1, 1)), ("preferred", (3, 0))):
        logits = [(x - centre[0]) - 2 * (y - centre[1]) + 0.5 for x, y in states.tolist()]
        expected = torch.tensor([1 / (1 + math.exp(-z)) for z in logits])
        torch.testing.assert_close(fitted.probability(states, side), expected)  # type: ignore[arg-type]
    with pytest.raises(SteerbenchError, match="centred per class; say of which side the states are"):
        fitted.probability(states)


@pytest.mark.parametrize("centre", CENTRES)
def test_the_loss_is_that_of_the_probabilities(centre: Any) -> None:
    contrast = toy(4, width=8, n_pairs=10)
    fitted = fit_ccs(contrast, generator(0), centre=centre, epochs=20)
    p0, p1 = fitted.probability(contrast.other, "other"), fitted.probability(contrast.preferred, "preferred")
    assert fitted.loss == pytest.approx(float(ccs_loss(p0, p1)), rel=1e-5)
    if centre != "class":
        torch.testing.assert_close(fitted.probability(contrast.other), p0)


# Mistakes


@pytest.mark.parametrize(
    ("preferred", "other", "options", "expected"),
    [
        (torch.ones(1, 3), torch.ones(1, 3), {}, "at least 2 pairs, not 1; use more training examples"),
        (torch.ones(0, 3), torch.ones(0, 3), {}, "at least 2 pairs, not 0; use more training examples"),
        (torch.ones(4, 3), torch.ones(5, 3), {}, r"\(pairs, width\); these are \(4, 3\) and \(5, 3\)"),
        (torch.ones(4), torch.ones(4), {}, r"these are \(4,\) and \(4,\)"),
        (torch.ones(4, 3), torch.full((4, 3), math.nan), {}, "not finite; load the model in float32"),
        (torch.full((4, 3), math.inf), torch.ones(4, 3), {}, "not finite; load the model in float32"),
        (torch.ones(4, 3), torch.ones(4, 3), {"centre": "clas"}, "unknown centre of CCS 'clas'. Did you mean 'class'?"),
        (torch.ones(4, 3), torch.ones(4, 3), {"restarts": 0}, "restarts=0 and epochs=1000 learns nothing"),
        (torch.ones(4, 3), torch.ones(4, 3), {"epochs": 0}, "restarts=10 and epochs=0 learns nothing"),
    ],
)
def test_what_cannot_be_fitted(preferred: Tensor, other: Tensor, options: Any, expected: str) -> None:
    with pytest.raises(SteerbenchError, match=expected):
        fit_ccs(Contrast(preferred, other), generator(0), **options)


# What it finds where two things tell the sides apart (arXiv:2312.10029)


@pytest.mark.parametrize("prominent", [0, 1])
def test_of_two_features_the_more_prominent_one_is_found(prominent: int) -> None:
    """Neither says which side is which: the loss has both for minima, and starts lead to what pairs differ in most."""
    draw = generator(2000)
    axes = torch.linalg.qr(torch.randn(64, 2, generator=draw)).Q.T
    signs = torch.randn(2, 400, generator=draw).sign()
    lengths = torch.tensor([0.5, 2.0] if prominent else [2.0, 0.5])
    half = (signs * lengths[:, None]).T @ axes
    base = torch.randn(400, 64, generator=draw)
    contrast = Contrast(base + half, base - half)
    probe = fit_ccs(contrast, generator(0), centre="class", optimizer="lbfgs")
    first = probe.probability(contrast.preferred, "preferred") > probe.probability(contrast.other, "other")
    agrees = ((signs > 0) == first).float().mean(1)
    shares = torch.maximum(agrees, 1 - agrees)
    assert shares[prominent] > 0.95
    assert shares[1 - prominent] < 0.65


def test_on_the_testbed_it_finds_words_and_not_the_preference(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script whose numbers stand in the verdicts."""
    script = str(Path(__file__).parents[2] / "results" / "what_ccs_finds.py")
    monkeypatch.setattr(sys, "argv", [script])
    runpy.run_path(script, run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    plain, preference, word = map(float, next(line for line in lines if line.startswith("CCS")).split()[1:])
    _, known, _ = map(float, lines[-1].split()[-3:])
    assert word > 0.9
    assert max(plain, preference) < 0.65 < known
