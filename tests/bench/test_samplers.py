"""What tuning tries: coarse to fine, or as Optuna proposes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pytest

from steerbench import Protocol
from steerbench.bench import protocol
from steerbench.bench.protocol import BLIND_TRIALS, SamplerName
from steerbench.bench.samplers import CoarseToFine, OptunaSampler, leading, sampler_of
from steerbench.bench.search_space import Cell, SearchSpace
from steerbench.errors import SteerbenchError

VALUES = {
    "strength": tuple(0.1 * k for k in range(1, 13)),
    "layer": tuple(k / 12 for k in range(12)),
    "pool": ("mean", "last", "letter"),
}
BEST = (9, 3, 1)
Score = Callable[[Cell], float | None]


def hill(cell: Cell) -> float:
    """Return a score with one peak, at `BEST`."""
    return -float(sum(abs(a - b) for a, b in zip(cell[:2], BEST[:2], strict=True)) + 5 * (cell[2] != BEST[2]))


def tried(
    name: SamplerName, score: Score, n: int, seed: int = 0, values: Mapping[str, Sequence[object]] | None = None
) -> list[Cell]:
    space = SearchSpace(values or VALUES, seed)
    sampler, cells = sampler_of(name, space, n), list[Cell]()
    for _ in range(min(n, space.size)):
        cells.append(sampler.next(cells, [score(cell) for cell in cells]))
    return cells


@pytest.mark.parametrize("name", ["coarse", "optuna"])
def test_no_point_is_tried_twice_and_the_seed_decides(name: SamplerName) -> None:
    cells = tried(name, hill, 40)
    assert len(set(cells)) == 40
    assert all(0 <= i < len(values) for cell in cells for i, values in zip(cell, VALUES.values(), strict=True))
    assert cells == tried(name, hill, 40)
    assert cells != tried(name, hill, 40, seed=1)


@pytest.mark.parametrize("name", ["coarse", "optuna"])
def test_both_find_the_peak_of_a_hill(name: SamplerName) -> None:
    """60 of 432 points are tried, and five lie within a step: blind draws meet one with all five seeds in 4 %."""
    assert all(max(map(hill, tried(name, hill, 60, seed))) >= -1 for seed in range(5))


def test_optuna_learns_from_the_scores() -> None:
    late = [hill(cell) for seed in range(5) for cell in tried("optuna", hill, 60, seed)[30:]]
    blind = [hill(cell) for seed in range(5) for cell in tried("optuna", lambda _: 0.0, 60, seed)[30:]]
    assert sum(late) / len(late) > sum(blind) / len(blind) + 2


@pytest.mark.parametrize("name", ["coarse", "optuna"])
def test_what_ends_with_an_error_is_passed_over(name: SamplerName) -> None:
    cells = tried(name, lambda cell: None if cell[2] == 0 else hill(cell), 40)
    assert len(set(cells)) == 40
    assert tried(name, lambda _: None, 20)


def test_a_space_that_fits_is_tried_whole_and_in_its_order() -> None:
    small = {"strength": (0.1, 0.2, 0.3), "pool": ("mean", "last")}
    assert tried("optuna", hill_of_two, 6, values=small) == SearchSpace(small, 0).coarse(6)
    assert isinstance(sampler_of("optuna", SearchSpace(small, 0), 6), CoarseToFine)


def hill_of_two(cell: Cell) -> float:
    return float(cell[0])


def test_where_optuna_insists_a_step_is_taken() -> None:
    """All but one point of a small space are tried: the last is found, however often others are proposed."""
    small = {"strength": tuple(range(5)), "pool": ("mean", "last")}
    space = SearchSpace(small, 0)
    sampler, cells = OptunaSampler(space), list[Cell]()
    for _ in range(space.size):
        cells.append(sampler.next(cells, [float(10 * cell[0]) for cell in cells]))
    assert sorted(cells) == space.coarse(space.size)


def test_the_first_leads_where_scores_are_equal() -> None:
    assert leading([None, 1.0, 2.0, 2.0 + 1e-12]) == 2
    assert leading([None, None]) is None
    assert leading([]) is None


optuna = partial(Protocol, sampler="optuna")


def test_optuna_is_for_budgets_that_it_can_learn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    assert optuna(tuning_budget=BLIND_TRIALS + 1).sampler == "optuna"
    for wrong in ({}, {"tuning_budget": BLIND_TRIALS}, {"tuning_budget": 32, "match_kl": 0.1}):
        with pytest.raises(SteerbenchError, match="sampler 'optuna' is for tuning with more than 16 trials"):
            optuna(**wrong)
    with pytest.raises(SteerbenchError, match="Did you mean 'optuna'"):
        Protocol(sampler="optunna")  # type: ignore[arg-type]
    monkeypatch.setattr(protocol, "find_spec", lambda name: None)
    with pytest.raises(SteerbenchError, match=r"pip install 'steerbench\[optuna\]'"):
        optuna(tuning_budget=32)
