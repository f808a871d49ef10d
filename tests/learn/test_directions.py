"""Directions against loops and eigenvectors, the pairs they are read from, and where a PCA goes wrong."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from steerbench import Decoding, Example, FitContext, LanguageModel, SteerbenchError
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Site
from steerbench.learn import (
    Contrast,
    Tokens,
    at_relative_norm,
    contrast,
    difference_of_means,
    principal_difference,
    singular_directions,
    toward_preferred,
)
from steerbench.learn.pairs import pairs_from

SEEDS = range(5)


def drawn(seed: int, n_pairs: int = 7, width: int = 5) -> Contrast:
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(width, generator=generator)
    return Contrast(*(torch.randn(2, n_pairs, width, generator=generator) + torch.stack([shift, -shift])[:, None]))


def cosine(a: Tensor, b: Tensor) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / float(sum(x * x for x in a.tolist()) ** 0.5 * sum(y * y for y in b.tolist()) ** 0.5)


def naive_axes(rows: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the energies and axes, one a row, of uncentred rows, largest first: eigenvectors of sum x x^T."""
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for row in rows.double().numpy():
        total += np.outer(row, row)
    energies, axes = np.linalg.eigh(total)
    return energies[::-1], axes.T[::-1]


# Estimators


@pytest.mark.parametrize("seed", SEEDS)
def test_difference_of_means_is_that_of_a_loop(seed: int) -> None:
    pairs = drawn(seed)
    expected = [
        sum(float(p[j]) for p in pairs.preferred) / 7 - sum(float(o[j]) for o in pairs.other) / 7 for j in range(5)
    ]
    torch.testing.assert_close(difference_of_means(pairs), torch.tensor(expected))
    torch.testing.assert_close(pairs.differences.mean(0), torch.tensor(expected))


@pytest.mark.parametrize("seed", SEEDS)
def test_principal_difference_is_the_first_uncentred_axis_toward_the_preferred_side(seed: int) -> None:
    pairs = drawn(seed)
    _, axes = naive_axes(pairs.preferred - pairs.other)
    found = principal_difference(pairs)
    assert float(found.norm()) == pytest.approx(1, abs=1e-6)
    assert abs(cosine(found, torch.tensor(axes[0].copy()))) == pytest.approx(1, abs=1e-6)
    assert cosine(found, difference_of_means(pairs)) > 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(12, 6), (4, 9), (1, 3), (5, 5)])
@pytest.mark.parametrize("energy", [0.0, 0.3, 0.9, 0.999, 1.0])
def test_the_fewest_directions_that_hold_the_energy(seed: int, shape: tuple[int, int], energy: float) -> None:
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.3
    energies, axes = naive_axes(rows)
    count, held = 1, energies[0]
    while held < energy * energies.sum() * (1 - 1e-10):
        held += energies[count]
        count += 1
    found = singular_directions(rows, energy)
    assert found.shape == (count, shape[1])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found @ found.T, torch.eye(count), rtol=0, atol=1e-5)
    for direction, axis in zip(found, axes[:count], strict=True):
        assert abs(cosine(direction, torch.tensor(axis.copy()))) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("energy", "count"), [(0.0, 1), (0.64, 1), (0.65, 2), (0.8, 2), (0.81, 3), (1.0, 4)])
def test_energy_is_the_share_of_squared_singular_values(energy: float, count: int) -> None:
    """The squares are 16, 4, 4 and 1 of 25: not centred, not the values themselves."""
    rows = torch.diag(torch.tensor([2.0, 4.0, 1.0, 2.0]))
    found = singular_directions(rows, energy)
    assert len(found) == count
    assert found[0].abs().tolist() == pytest.approx([0, 1, 0, 0], abs=1e-6)


def test_few_pairs_span_few_directions() -> None:
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    repeated = torch.cat([rows, 2 * rows, -rows])
    assert len(singular_directions(repeated, 1.0)) == 3


def test_rows_of_zeros_have_no_direction() -> None:
    alike = Contrast(torch.ones(4, 3), torch.ones(4, 3))
    assert torch.equal(singular_directions(alike.differences, 0.9), torch.zeros(1, 3))
    assert torch.equal(principal_difference(alike), torch.zeros(3))


def test_directions_are_turned_toward_the_preferred_side() -> None:
    pairs = drawn(3)
    directions = torch.randn(20, 5, generator=torch.Generator().manual_seed(4))
    turned = toward_preferred(directions, pairs)
    flipped = 0
    for before, after in zip(directions, turned, strict=True):
        leaning = sum(float((p - o) @ before) for p, o in zip(pairs.preferred, pairs.other, strict=True)) / 7
        assert torch.equal(after, before if leaning >= 0 else -before)
        flipped += leaning < 0
    assert 0 < flipped < 20


def test_what_leans_to_neither_side_stays() -> None:
    pairs = Contrast(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.zeros(2, 2))
    assert torch.equal(toward_preferred(torch.tensor([[0.0, -1.0]]), pairs), torch.tensor([[0.0, -1.0]]))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_axis_depends_on_no_order_inside_pairs_and_the_direction_does(seed: int) -> None:
    pairs = drawn(seed)
    swap = torch.rand(7, 1, generator=torch.Generator().manual_seed(seed)) < 0.5
    mixed = Contrast(torch.where(swap, pairs.other, pairs.preferred), torch.where(swap, pairs.preferred, pairs.other))
    assert abs(cosine(principal_difference(mixed), principal_difference(pairs))) == pytest.approx(1, abs=1e-5)
    swapped = Contrast(pairs.other, pairs.preferred)
    torch.testing.assert_close(principal_difference(swapped), -principal_difference(pairs))
    torch.testing.assert_close(difference_of_means(swapped), -difference_of_means(pairs))


# The contrast


@pytest.mark.parametrize("limit", [-1.0, -0.2, 0.3, 0.8, 1.0])
def test_apart_drops_pairs_of_a_high_cosine_and_keeps_both_sides_together(limit: float) -> None:
    generator = torch.Generator().manual_seed(0)
    preferred = torch.randn(60, 4, generator=generator)
    other = preferred * torch.linspace(-2, 2, 60)[:, None] + torch.randn(60, 4, generator=generator)
    pairs = Contrast(preferred, other)
    kept = [i for i in range(60) if cosine(preferred[i], other[i]) <= limit]
    found = pairs.apart(limit)
    assert torch.equal(found.preferred, preferred[kept])
    assert torch.equal(found.other, other[kept])
    assert len(kept) == {-1.0: 0, 1.0: 60}.get(limit, len(kept))
    assert limit in {-1.0, 1.0} or 5 < len(kept) < 55


@pytest.mark.parametrize("share", [0.1, 1.0, 3.0])
def test_at_relative_norm_is_a_share_of_the_mean_length_of_both_sides(share: float) -> None:
    pairs = drawn(1)
    lengths = [sum(x * x for x in row.tolist()) ** 0.5 for side in pairs for row in side]
    direction = difference_of_means(pairs)
    found = at_relative_norm(direction, pairs, share)
    assert float(found.norm()) == pytest.approx(share * sum(lengths) / 14, rel=1e-5)
    assert cosine(found, direction) == pytest.approx(1, abs=1e-6)


def test_without_a_relative_norm_the_direction_stays_as_it_is_and_zero_stays_zero() -> None:
    pairs = drawn(1)
    direction = difference_of_means(pairs)
    assert at_relative_norm(direction, pairs, None) is direction
    assert torch.equal(at_relative_norm(torch.zeros(5), pairs, 0.5), torch.zeros(5))


# What a contrast is read from

SHORT = [("Hi", "Yes.", "No way."), ("Is tea hot?", "It is, take care.", "Who cares"), ("Sing", "La la", "Never.")]


@pytest.fixture
def context(llama: LanguageModel) -> FitContext:
    examples = [Example(str(i), str(i), user(q), good, bad) for i, (q, good, bad) in enumerate(SHORT)]
    return FitContext(
        lm=llama, examples=examples, reward=tiny.VowelReward(), decoding=Decoding(max_new_tokens=5), batch_size=2
    )


def naive_state(lm: LanguageModel, tokens: Tokens, pool: str) -> Tensor:
    """Return the output of block 1, for one sequence alone."""
    ids = torch.tensor([tokens.prompt + tokens.response])
    with torch.no_grad():
        states: Tensor = lm.model(ids, output_hidden_states=True).hidden_states[2][0]
    start = len(tokens.prompt)
    if pool == "response_mean":
        return states[start:].mean(0)
    return states[start - 1] if pool == "last_prompt" else states[-1]


@pytest.mark.parametrize(
    ("source", "pool"),
    [
        ("preferences", "last_response"),
        ("preferences", "response_mean"),
        ("choices", "last_response"),
        ("self_generated", "response_mean"),
        ("personas", "last_prompt"),
    ],
)
def test_row_i_of_a_contrast_is_pair_i_of_its_source(context: FitContext, source: Any, pool: Any) -> None:
    pairs = pairs_from(context, source)
    assert len(pairs) == 3
    found = contrast(context, Site("resid_post", 1), pool, source)
    for i, pair in enumerate(pairs):
        torch.testing.assert_close(found.preferred[i], naive_state(context.lm, pair.chosen, pool), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.other[i], naive_state(context.lm, pair.rejected, pool), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found.preferred[i], found.other[i])
    given = contrast(context, Site("resid_post", 1), pool, pairs[::-1])
    torch.testing.assert_close(given.preferred, found.preferred.flip(0))


def test_a_contrast_is_one_of_preferences_where_nothing_is_said(context: FitContext) -> None:
    site = Site("mlp_out", 0)
    default, named = (contrast(context, site, "last_response", *s) for s in ((), (context.pairs(),)))
    assert torch.equal(default.preferred, named.preferred)
    assert torch.equal(default.other, named.other)


@pytest.mark.parametrize("pool", ["last_response", "response_mean"])
def test_personas_have_no_reply_to_read(context: FitContext, pool: Any) -> None:
    message = f"pairs='personas' have no reply for pool='{pool}'; set pool=last_prompt"
    with pytest.raises(SteerbenchError, match=message):
        contrast(context, Site("mlp_out", 0), pool, "personas")


@pytest.mark.parametrize("source", ["preferences", "choices", "self_generated"])
def test_both_sides_end_their_prompt_alike_where_they_differ_by_the_reply(context: FitContext, source: Any) -> None:
    with pytest.raises(SteerbenchError, match=f"both sides of pairs='{source}' are the same; set pool=last_response"):
        contrast(context, Site("mlp_out", 0), "last_prompt", source)
    with pytest.raises(SteerbenchError, match="both sides of pairs=given are the same"):
        contrast(context, Site("mlp_out", 0), "last_prompt", context.pairs())


# Where a PCA goes wrong


def trap(seed: int, shift: float, width: int = 64, n_pairs: int = 512) -> tuple[Contrast, Tensor]:
    """Return pairs that differ by `shift` along one direction, and that direction.

    Along another one the states deviate by 4: half of this variance is shared by a pair, as that of its prompt is.
    """
    generator = torch.Generator().manual_seed(seed)
    truth, nuisance = torch.linalg.qr(torch.randn(width, 2, generator=generator)).Q.T
    base = 8**0.5 * torch.randn(n_pairs, 1, generator=generator) * nuisance
    base = base + 3 * torch.randn(width, generator=generator)
    own = 8**0.5 * torch.randn(2, n_pairs, 1, generator=generator) * nuisance
    noise = 0.5 * torch.randn(2, n_pairs, width, generator=generator)
    sides = torch.stack([truth, -truth])[:, None] * shift / 2
    return Contrast(*(base + own + noise + sides)), truth


def pca(rows: Tensor) -> Tensor:
    return torch.from_numpy(PCA(1).fit(rows.numpy()).components_[0])


PCA_FORMS: dict[str, Callable[[Contrast], Tensor]] = {
    "raw differences": lambda pairs: pca(pairs.differences),
    "union": lambda pairs: pca(torch.cat([pairs.preferred, pairs.other])),
    "symmetrised": lambda pairs: pca(torch.cat([pairs.differences, -pairs.differences])),
    "uncentred": principal_difference,
}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_large_shift_is_found_without_centring_and_lost_with_it(seed: int) -> None:
    pairs, truth = trap(seed, shift=6)
    assert cosine(difference_of_means(pairs), truth) > 0.99
    assert cosine(principal_difference(pairs), truth) > 0.99
    assert abs(cosine(PCA_FORMS["symmetrised"](pairs), truth)) > 0.99
    for name in ("raw differences", "union"):
        assert abs(cosine(PCA_FORMS[name](pairs), truth)) < 0.2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shift_below_the_nuisance_is_found_by_the_means_alone(seed: int) -> None:
    """Documents a failure: every form of PCA finds what varies most."""
    pairs, truth = trap(seed, shift=3)
    assert cosine(difference_of_means(pairs), truth) > 0.97
    for estimate in PCA_FORMS.values():
        assert abs(cosine(estimate(pairs), truth)) < 0.2


def test_pairs_that_are_cut_to_the_same_tokens_are_refused(llama: LanguageModel) -> None:
    context = FitContext(
        lm=llama,
        examples=[Example(str(i), str(i), user(f"Question {i}?"), "(A)", "(B)") for i in range(3)],
        reward=tiny.VowelReward(),
        decoding=Decoding(max_new_tokens=1),
    )
    with pytest.raises(SteerbenchError, match=r"are the same in the tokens that are read.*raise --max-new-tokens"):
        contrast(context, Site("resid_post", 0), "response_mean")
