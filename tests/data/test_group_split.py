"""Items are split by their group: disjoint, complete, and as an order of the groups says."""

import random

import pytest
import torch

from steerbench.data import user
from steerbench.data.splits import half_of, split_by_group
from steerbench.data.task import Example
from steerbench.learn import Split


def test_groups_go_where_the_order_says() -> None:
    groups = ["a", "b", "a", "c", "d", "b"]
    assert split_by_group(groups, ["c", "b", "d", "a"], [1, 2]) == [[3], [1, 4, 5], [0, 2]]
    assert split_by_group(groups, ["c", "b", "d", "a"], []) == [[0, 1, 2, 3, 4, 5]]
    assert split_by_group(groups, ["c", "b", "d", "a"], [0, 4]) == [[], [0, 1, 2, 3, 4, 5], []]
    assert split_by_group([], [], [2]) == [[], []]


@pytest.mark.parametrize("seed", range(20))
def test_every_item_is_in_one_part_with_its_group(seed: int) -> None:
    draw = random.Random(seed)
    groups = [f"g{draw.randrange(12)}" for _ in range(40)]
    order = draw.sample(sorted(set(groups)), len(set(groups)))
    parts = split_by_group(groups, order, [2, 3])
    assert sorted(i for part in parts for i in part) == list(range(40))
    assert [{groups[i] for i in part} for part in parts] == [set(order[:2]), set(order[2:5]), set(order[5:])]


@pytest.mark.parametrize("seed", range(5))
def test_the_draw_of_a_seed_stays_what_it_was(seed: int) -> None:
    """Records name seeds: the same seed must keep on drawing the same rollouts."""
    groups = [f"g{i * 7 % 31}" for i in range(90)]
    names = sorted(set(groups))
    drawn = torch.randperm(31, generator=torch.Generator().manual_seed(seed)).tolist()
    home = {names[i]: min(place // 3, 2) for place, i in enumerate(drawn)}
    report, validation, train = ([i for i, g in enumerate(groups) if home[g] == part] for part in range(3))
    assert Split.of(groups, torch.Generator().manual_seed(seed)) == Split(train, validation, report)


def test_halves_part_groups_and_not_examples() -> None:
    examples = [Example(str(i), f"group {i // 3}", user(f"{i}?"), "Yes.", "No.") for i in range(21)]
    halves = [half_of(examples, half) for half in (0, 1)]
    groups = [{example.group for example in half} for half in halves]
    assert not groups[0] & groups[1]
    assert [len(found) for found in groups] == [4, 3]
    assert sorted([e.id for half in halves for e in half]) == sorted(e.id for e in examples)
    assert halves[0] == half_of(examples[::-1], 0)[::-1], "whatever the order of the data"
