"""Which points of a space tuning looks at: coarse over all of it, then one step from the best."""

from itertools import product

import pytest

from steerbench.bench.search_space import Cell, SearchSpace

VALUES = {
    "strength": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    "layer": (0.0, 0.25, 0.5, 0.75),
    "pool": ("mean", "last"),
}
EVERY = list(product(range(8), range(4), range(2)))


def test_a_point_has_the_values_of_its_cell() -> None:
    assert SearchSpace(VALUES, 0).point((7, 1, 0)) == {"strength": 0.8, "layer": 0.25, "pool": "mean"}


def test_a_space_that_fits_is_given_whole_and_in_order() -> None:
    assert SearchSpace(VALUES, 0).size == 64
    assert SearchSpace(VALUES, 0).coarse(64) == EVERY


@pytest.mark.parametrize("seed", range(20))
def test_the_coarse_half_has_one_layer_of_each_quarter_of_the_depth(seed: int) -> None:
    cells = SearchSpace(VALUES, seed).coarse(4)
    assert sorted(layer for _, layer, _ in cells) == [0, 1, 2, 3]
    assert sorted(strength // 2 for strength, _, _ in cells) == [0, 1, 2, 3]
    assert sorted(pool for *_, pool in cells) == [0, 0, 1, 1]


def test_what_is_drawn_is_drawn_by_the_seed() -> None:
    drawn = [SearchSpace(VALUES, seed).coarse(4) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({str(cells) for cells in drawn}) > 2


def test_a_step_changes_one_number_by_one_or_one_word() -> None:
    space, best = SearchSpace(VALUES, 0), (0, 2, 1)
    tried: list[Cell] = [best]
    while len(tried) < 5:
        tried.append(space.neighbour(tried, best))
    assert sorted(tried[1:]) == [(0, 1, 1), (0, 2, 0), (0, 3, 1), (1, 2, 1)]


def test_every_cell_is_reached_once_and_then_none_is_left() -> None:
    space = SearchSpace(VALUES, 3)
    tried: list[Cell] = [(4, 1, 0)]
    while len(tried) < space.size:
        tried.append(space.neighbour(tried, tried[0]))
    assert sorted(tried) == EVERY
    with pytest.raises(ValueError, match="every cell was tried"):
        space.neighbour(tried, tried[0])
