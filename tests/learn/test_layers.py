"""Which layers methods work in, against loops over all of them."""

import random
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from steerbench import LanguageModel, SteerbenchError
from steerbench.learn import block_at, elbow, middle_layer


def of_depth(n: int) -> Any:
    """Return what the functions ask of a model: its depth and its name."""
    return SimpleNamespace(n_layers=n, name="stub")


@pytest.mark.parametrize(
    ("n", "depth", "expected"),
    [(48, 6 / 48, 6), (32, 13 / 32, 13), (40, 0.5, 20), (3, 0.0, 0), (12, 6 / 48, 2), (3, 6 / 48, 0), (1, 0.4, 0)],
)
def test_a_share_of_the_depth(n: int, depth: float, expected: int) -> None:
    assert block_at(of_depth(n), depth) == expected


def test_the_middle_layer_is_the_nearest_to_thirteen_of_thirty_two_and_there() -> None:
    for n in range(1, 200):
        chosen = middle_layer(of_depth(n), None)
        assert 0 <= chosen < n
        assert abs(Fraction(13, 32) * n - chosen) == min(abs(Fraction(13, 32) * n - layer) for layer in range(n))


def test_published_middle_layers() -> None:
    assert [middle_layer(of_depth(n), None) for n in (32, 40)] == [13, 16]


@pytest.mark.parametrize("layer", range(3))
def test_a_layer_that_is_given_is_taken(llama: LanguageModel, layer: int) -> None:
    assert block_at(llama, 0.9, layer) == layer == middle_layer(llama, layer)


@pytest.mark.parametrize(
    ("n", "expected"), [(5, [0, 1, 2, 3, 4]), (32, [0, 6, 13, 19, 26]), (3, [0, 1, 1, 2, 2]), (1, [0] * 5)]
)
def test_a_fraction_is_a_share_of_the_depth(n: int, expected: list[int]) -> None:
    assert [middle_layer(of_depth(n), share) for share in (0.0, 0.2, 0.4, 0.6, 0.8)] == expected


@pytest.mark.parametrize("layer", [1.0, -0.1, 13.0])
def test_a_fraction_that_is_no_share(layer: float) -> None:
    with pytest.raises(SteerbenchError, match=rf"layer={layer} is no share of the depth; give 0\.0 to 0\.99"):
        middle_layer(of_depth(32), layer)


@pytest.mark.parametrize(("depth", "layer"), [(0.5, -1), (0.5, 3), (0.5, 10**6), (1.0, None), (-0.5, None)])
def test_a_layer_outside_the_model(llama: LanguageModel, depth: float, layer: int | None) -> None:
    with pytest.raises(SteerbenchError, match=r"layer=-?\d+ is outside 0\.\.2 of tiny-llama"):
        block_at(llama, depth, layer)


def naive_elbow(losses: list[Fraction]) -> list[int]:
    """Try every number of layers; the first of equal rises wins, and of equal losses the first layer."""
    order = sorted(range(len(losses)), key=lambda layer: (losses[layer], layer))
    best, steepest = order, None
    for j in range(1, len(losses)):
        before = sum(losses[i] for i in order[:j]) / j
        after = sum(losses[i] for i in order[: j + 1]) / (j + 1)
        if steepest is None or after - before > steepest:
            best, steepest = order[:j], after - before
    return best


def test_elbow_is_a_loop_over_the_number_of_layers() -> None:
    draw = random.Random(0)
    for _ in range(200):
        losses = [draw.random() for _ in range(draw.randint(1, 40))]
        assert elbow(losses) == naive_elbow([Fraction(x) for x in losses])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], []),
        ([0.5], [0]),
        ([0.5, 0.25], [1]),
        ([0.25, 0.5], [0]),
        ([0.5, 0.5], [0]),
        ([0.5, 0.5, 0.5, 0.5], [0]),
        ([0.0, 1.0, 0.0, 1.0], [0, 2]),
        ([1.0, 0.25, 1.0, 0.25, 0.25], [1, 3, 4]),
        ([0.0, 2.0, 3.0, 4.0], [0]),
        ([0.5, 0.25, 0.25, 8.0], [1, 2, 0]),
    ],
)
def test_elbow_of_known_losses(losses: list[float], expected: list[int]) -> None:
    assert elbow(losses) == expected == naive_elbow([Fraction(x) for x in losses])
