"""Edits along directions against loops over rows and positions in double precision."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steerbench import SteerbenchError, Steering
from steerbench.edits import Ablate, Gated, PlacedEdit, RemoveBoost, Site

ROWS, COLUMNS, WIDTH = 4, 3, 6
FORMS: list[Any] = ["tanh", "relu", "add"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def states(seed: int = 0) -> Tensor:
    return 2 * drawn(ROWS, COLUMNS, WIDTH, seed=seed)


def orthonormal(k: int, seed: int = 1) -> Tensor:
    basis: Tensor = torch.linalg.qr(drawn(WIDTH, k, seed=seed).double()).Q.T.float()
    return basis


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def unit(a: list[float]) -> list[float]:
    return [x / dot(a, a) ** 0.5 for x in a]


def plus(a: list[float], factor: float, b: list[float]) -> list[float]:
    return [x + factor * y for x, y in zip(a, b, strict=True)]


def everywhere(h: Tensor, naive: Any) -> Tensor:
    """Apply a function of (row, list of numbers) to each position by itself."""
    return torch.tensor([[naive(i, x) for x in row.tolist()] for i, row in enumerate(h)])


# Ablate


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("target", [0.0, -1.5])
def test_ablate_moves_the_component_toward_the_target(strength: float, target: float) -> None:
    h, direction = states(), drawn(WIDTH, seed=2) * 7
    r = unit(direction.tolist())
    edited = Ablate(direction, target, strength)(h, None)
    expected = everywhere(h, lambda i, x: plus(x, -strength * (dot(x, r) - target), r))
    torch.testing.assert_close(edited, expected)
    left, before = (each @ torch.tensor(r) for each in (edited, h))
    torch.testing.assert_close(left, (1 - strength) * before + strength * target, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [0.0, 2.5])
def test_ablation_at_full_strength_is_idempotent(target: float) -> None:
    edit = Ablate(drawn(WIDTH, seed=2), target)
    once = edit(states(), None)
    torch.testing.assert_close(edit(once, None), once)
    half = Ablate(drawn(WIDTH, seed=2), target, 0.5)
    assert not torch.allclose(half(half(states(), None), None), half(states(), None))


@pytest.mark.parametrize("factor", [-1.0, 100.0, -0.01])
def test_ablation_depends_on_neither_length_nor_sign_of_the_direction(factor: float) -> None:
    direction = drawn(WIDTH, seed=2)
    for strength in (1.0, 0.4):
        expected = Ablate(direction, strength=strength)(states(), None)
        torch.testing.assert_close(Ablate(factor * direction, strength=strength)(states(), None), expected)


def test_with_a_target_the_sign_of_the_direction_counts() -> None:
    direction = drawn(WIDTH, seed=2)
    assert not torch.allclose(Ablate(-direction, 1.0)(states(), None), Ablate(direction, 1.0)(states(), None))
    torch.testing.assert_close(Ablate(-direction, -1.0)(states(), None), Ablate(direction, 1.0)(states(), None))


# RemoveBoost


def naive_remove_boost(
    x: list[float], remove: list[float], boost: list[float], strength: float, one_sided: bool
) -> list[float]:
    for factor, direction in ((-strength, unit(remove)), (strength, unit(boost))):
        component = dot(x, direction)
        x = plus(x, factor * (max(component, 0) if one_sided else component), direction)
    return x


@pytest.mark.parametrize("one_sided", [True, False])
@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
def test_removes_first_and_boosts_what_is_then_there(one_sided: bool, strength: float) -> None:
    h, (remove, boost) = states(), 3 * drawn(2, WIDTH, seed=4)
    edited = RemoveBoost(remove, boost, strength, one_sided)(h, None)
    given = remove.tolist(), boost.tolist(), strength, one_sided
    torch.testing.assert_close(edited, everywhere(h, lambda i, x: naive_remove_boost(x, *given)), rtol=1e-5, atol=1e-5)
    swapped = RemoveBoost(-boost, -remove, strength, one_sided)(h, None)
    assert not torch.allclose(swapped, edited)


@pytest.mark.parametrize(("remove", "boost"), [(-1.0, 1.0), (50.0, 1.0), (-0.1, -7.0)])
def test_two_sided_depends_on_neither_length_nor_sign(remove: float, boost: float) -> None:
    r, b = drawn(2, WIDTH, seed=4)
    expected = RemoveBoost(r, b, 0.7, one_sided=False)(states(), None)
    torch.testing.assert_close(RemoveBoost(remove * r, boost * b, 0.7, one_sided=False)(states(), None), expected)


def test_two_sided_removal_leaves_nothing_along_its_direction() -> None:
    """Boosting a direction at a right angle brings nothing back."""
    remove, boost = orthonormal(2)
    edit = RemoveBoost(remove, boost, one_sided=False)
    edited = edit(states(), None)
    torch.testing.assert_close(edited @ remove, torch.zeros(ROWS, COLUMNS), rtol=0, atol=1e-5)
    torch.testing.assert_close(edited @ boost, 2 * (states() @ boost), rtol=1e-4, atol=1e-5)


def test_one_sided_toward_one_side_doubles_what_leans_there_and_removes_what_leans_away() -> None:
    (toward,) = orthonormal(1)
    before = states() @ toward
    after = RemoveBoost(-toward, toward)(states(), None) @ toward
    assert (before < 0).any()
    assert (before > 0).any()
    torch.testing.assert_close(after, 2 * before.clamp(min=0), rtol=1e-4, atol=1e-5)


# Gated


def naive_open(form: str, query: list[float], directions: list[list[float]], filtered: bool) -> list[int]:
    """Return the indices of the directions that a query lets through."""
    cosines = [dot(unit(query), t) for t in directions]
    return [i for i, c in enumerate(cosines) if not filtered or (c > 0 if form == "relu" else c <= 0)]


def naive_gated(x: list[float], form: str, directions: list[list[float]], strength: float) -> list[float]:
    """Add one direction after the other, each by its component of what the ones before have made."""
    for t in directions:
        s = dot(x, t)
        gate = {"tanh": math.tanh(s), "relu": -max(s, 0.0), "add": 1.0}[form]
        x = plus(x, strength * gate, t)
    return x


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("strength", [0.5, 1.0, 4.0])
def test_gated_is_one_direction_after_the_other_for_those_let_through(
    form: Any, filtered: bool, strength: float
) -> None:
    """Sequential and parallel application are the same for orthonormal directions."""
    h, query, directions = states(), drawn(ROWS, WIDTH, seed=5), orthonormal(4)
    edit = Gated(directions, strength, form, filtered)
    edited = edit(h, edit.begin(query, torch.ones(ROWS, dtype=torch.bool)))
    let = [naive_open(form, q, directions.tolist(), filtered) for q in query.tolist()]
    assert {len(rows) for rows in let} == {4} if not filtered else len({tuple(rows) for rows in let}) > 1
    expected = everywhere(h, lambda i, x: naive_gated(x, form, directions[let[i]].tolist(), strength))
    torch.testing.assert_close(edited, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("filtered", [True, False])
def test_the_score_is_the_length_of_the_projection_on_what_is_let_through(form: Any, filtered: bool) -> None:
    query, directions = 9 * drawn(20, WIDTH, seed=6), orthonormal(4)
    expected = []
    for q in query.tolist():
        rows = directions[naive_open(form, q, directions.tolist(), filtered)].double()
        projected = rows.T @ (rows @ torch.tensor(q, dtype=torch.float64))
        expected.append(float(projected.norm()) / dot(q, q) ** 0.5)
    scores = Gated(directions, form=form, filtered=filtered).score(query)
    assert scores.tolist() == pytest.approx(expected, abs=1e-6)
    assert Gated(directions, form=form, filtered=filtered).score(1000 * query).tolist() == pytest.approx(expected)


def test_a_direction_at_a_right_angle_to_the_query_is_let_through_to_be_amplified_only() -> None:
    query = torch.tensor([[1.0, 0, 0, 0, 0, 0]])
    for form, expected in (("tanh", [0, 1, 1]), ("add", [0, 1, 1]), ("relu", [1, 0, 0])):
        directions = torch.stack([torch.eye(WIDTH)[0], torch.eye(WIDTH)[1], -torch.eye(WIDTH)[0]])
        edit = Gated(directions, form=form)  # type: ignore[arg-type]
        assert edit.begin(query, torch.tensor([True]))[0].tolist() == expected


@pytest.mark.parametrize("filtered", [True, False])
def test_tanh_does_not_depend_on_the_sign_of_directions_but_its_filter_does(filtered: bool) -> None:
    h, query, directions = states(), drawn(ROWS, WIDTH, seed=5), orthonormal(4)
    flipped = directions * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    everyone = torch.ones(ROWS, dtype=torch.bool)
    one, two = (
        edit(h, edit.begin(query, everyone))
        for edit in (Gated(t, 1.0, "tanh", filtered) for t in (directions, flipped))
    )
    assert torch.allclose(one, two, rtol=1e-5, atol=1e-5) is not filtered


@pytest.mark.parametrize("form", ["relu", "add"])
def test_relu_and_add_depend_on_the_sign(form: Any) -> None:
    h, directions, all_open = states(), orthonormal(4), torch.ones(ROWS, 4)
    one, two = (Gated(t, 1.0, form, filtered=False)(h, all_open) for t in (directions, -directions))
    assert not torch.allclose(one, two)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_tanh_moves_by_at_most_the_strength_along_each_direction_and_amplifies(strength: float) -> None:
    h, directions = 50 * states(), orthonormal(4)
    moved = (Gated(directions, strength)(h, torch.ones(ROWS, 4)) - h) @ directions.T
    assert moved.abs().max() <= strength + 1e-4
    assert moved.abs().max() > 0.9 * strength
    assert torch.equal(moved.sign()[moved.abs() > 1e-3], (h @ directions.T).sign()[moved.abs() > 1e-3])


@pytest.mark.parametrize("form", FORMS)
def test_a_step_in_units_of_the_state_makes_the_edit_proportional_to_it(form: Any) -> None:
    h, directions, rows = states(), orthonormal(4), torch.ones(ROWS, 4)
    small, large = (Gated(directions, 0.7, form, step=step) for step in (0.2, 200.0))
    torch.testing.assert_close(large(1000 * h, rows), 1000 * small(h, rows), rtol=1e-4, atol=1e-2)


def test_a_step_of_nothing_is_refused() -> None:
    with pytest.raises(SteerbenchError, match=r"step=0\.0 of an edit moves nothing; give a number above 0"):
        Gated(orthonormal(2), step=0.0)


def test_relu_removes_what_leans_to_a_direction_and_nothing_else() -> None:
    h, directions = states(), orthonormal(4)
    before = h @ directions.T
    edited = Gated(directions, 1.0, "relu")(h, torch.ones(ROWS, 4))
    torch.testing.assert_close(edited @ directions.T, before.clamp(max=0), rtol=1e-4, atol=1e-5)
    outside = torch.eye(WIDTH) - directions.T @ directions
    torch.testing.assert_close(edited @ outside, h @ outside, rtol=1e-4, atol=1e-5)


def test_add_pushes_by_the_strength_whatever_the_state_is() -> None:
    h, directions = states(), orthonormal(3)
    edited = Gated(directions, 2.5, "add")(h, torch.ones(ROWS, 3))
    torch.testing.assert_close(edited - h, (2.5 * directions.sum(0)).expand_as(h), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_not_chosen_stay_as_they_are(form: Any) -> None:
    h, query, directions = states(), drawn(ROWS, WIDTH, seed=5), orthonormal(5)
    edit = Gated(directions, 3.0, form)
    chosen = torch.tensor([True, False, True, False])
    edited = edit(h, edit.begin(query, chosen))
    everyone = edit(h, edit.begin(query, torch.ones(ROWS, dtype=torch.bool)))
    for i in range(ROWS):
        assert torch.equal(edited[i], everyone[i] if chosen[i] else h[i])
        assert not torch.equal(everyone[i], h[i])


@pytest.mark.parametrize("form", FORMS)
def test_each_row_follows_its_own_query(form: Any) -> None:
    h, query, edit = states(), drawn(ROWS, WIDTH, seed=5), Gated(orthonormal(4), 3.0, form)
    together = edit(h, edit.begin(query, torch.ones(ROWS, dtype=torch.bool)))
    for i in range(ROWS):
        alone = edit(h[i : i + 1], edit.begin(query[i : i + 1], torch.tensor([True])))
        torch.testing.assert_close(together[i : i + 1], alone)
    torch.testing.assert_close(edit.score(query), torch.cat([edit.score(q[None]) for q in query]))


def test_without_a_contest_the_last_prompt_position_is_the_query_and_every_row_is_chosen() -> None:
    prompt, edit = states(), Gated(orthonormal(4))
    mask = torch.tensor([[True, True, True], [True, True, False], [False, True, True], [False, False, True]])
    last = torch.stack([prompt[0, 2], prompt[1, 1], prompt[2, 2], prompt[3, 2]])
    assert torch.equal(edit.start(prompt, mask), edit.begin(last, torch.ones(ROWS, dtype=torch.bool)))


# Both


OFF: list[Any] = [
    Ablate(drawn(WIDTH), 3.0, strength=0.0),
    RemoveBoost(drawn(WIDTH), drawn(WIDTH, seed=9), strength=0.0),
    RemoveBoost(drawn(WIDTH), drawn(WIDTH, seed=9), strength=0.0, one_sided=False),
    *(Gated(orthonormal(4), 0.0, form) for form in FORMS),
]


@pytest.mark.parametrize("edit", OFF, ids=lambda edit: type(edit).__name__)
def test_strength_zero_and_no_open_direction_are_bit_equal(edit: nn.Module) -> None:
    h = torch.cat([states(), 1e6 * states(1), torch.zeros(ROWS, COLUMNS, WIDTH)])
    assert torch.equal(edit(h, torch.ones(3 * ROWS, 4)), h)
    if isinstance(edit, Gated):
        closed = Gated(edit.directions, 5.0, edit.form)
        assert torch.equal(closed(h, torch.zeros(3 * ROWS, 4)), h)


def test_an_unknown_form_is_told_with_the_nearest_name() -> None:
    with pytest.raises(SteerbenchError, match=r"unknown form of an edit 'tahn'\. Did you mean 'tanh'\?"):
        Gated(orthonormal(2), form="tahn")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_a_direction_of_any_length_comes_back_from_a_file_bit_for_bit(seed: int, tmp_path: Path) -> None:
    direction, other = torch.randn(2, 32, generator=torch.Generator().manual_seed(seed)) * 7
    placed = tuple(PlacedEdit(Site("resid_post", 0), e) for e in (Ablate(direction), RemoveBoost(direction, other)))
    Steering(edits=placed).save(tmp_path)
    assert Steering.load(tmp_path).digest() == Steering(edits=placed).digest()
