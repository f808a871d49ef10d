"""AlignEZ on states whose truth is known: what it finds, what it leaves out, and what its variants cannot find."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from thorough import mostly_slow
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from steerbench import FitContext, LanguageModel, SteerbenchError, load
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Edit, Gated, RemoveBoost, Site
from steerbench.learn import Contrast, Pair, Response, Tokens, fit_ccs
from steerbench.learn.self_generation import Generated, SelfGenerated

WIDTH, LAYERS, N_PAIRS = 32, 3, 60
SEEDS = range(4)
"""Each has another truth in each of three layers: twelve in all."""
ANSWER = Response("x", (6,), "length")
PAIRS = [Pair(Tokens((5,), (6, i)), Tokens((5,), (7, i))) for i in range(N_PAIRS)]
WRITTEN = [Generated(user("?"), ("", ""), (ANSWER, ANSWER), pair) for pair in PAIRS]


@dataclass(kw_only=True)
class Planted(FitContext):
    """Gives the states that were planted in place of the model's: of layer, side and pair."""

    sides: Sequence[Contrast]

    def activations_at(self, sites: Sequence[Site], tokens: Sequence[Tokens], pool: Any) -> dict[Site, list[Tensor]]:
        return {site: self._planted(site, tokens, pool) for site in sites}

    def _planted(self, site: Site, tokens: Sequence[Tokens], pool: Any) -> list[Tensor]:
        assert (site.name, pool) == ("mlp_out", "last_response")
        assert site.layer is not None
        return [self.sides[site.layer][t.response[0] - 6][t.response[1]] for t in tokens]


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Give the pairs, and return what was asked for."""
    asked = []

    def written(context: Planted, *words: Any) -> SelfGenerated:
        asked.append(words)
        return SelfGenerated(WRITTEN[: len(context.sides[0].preferred)], {})

    monkeypatch.setattr("steerbench.methods.alignez.self_generated", written)
    return asked


@dataclass
class Truth:
    """States `common * mean + base +- 0.5 u` with a little noise; u and mean are at a right angle."""

    sides: Contrast
    u: Tensor
    mean: Tensor


def truths(seed: int, *, common: float = 0.0, even: bool = True) -> list[Truth]:
    """Draw a truth for each layer. In an even one all coordinates have one size."""
    found = []
    for layer in range(LAYERS):
        generator = torch.Generator().manual_seed(100 * seed + layer)
        u, m = torch.randn(2, WIDTH, generator=generator)
        u = normalize(u.sign() if even else u, dim=0)
        mean = normalize(m - (m @ u) * u, dim=0)
        base = 0.1 * torch.randn(N_PAIRS, WIDTH, generator=generator) + common * mean
        noise = 0.03 * torch.randn(2, N_PAIRS, WIDTH, generator=generator)
        found.append(Truth(Contrast(base + 0.5 * u + noise[0], base - 0.5 * u + noise[1]), u, mean))
    return found


def context(lm: LanguageModel, sides: Sequence[Contrast], seed: int = 0) -> Planted:
    return Planted(lm=lm, examples=[], reward=tiny.VowelReward(), seed=seed, sides=sides)


def fit(own: FitContext, **fields: Any) -> dict[int, Edit]:
    steering = load("methods", "alignez")(**{"edit": "tanh", **fields}).fit(own)  # relu has directions turned around
    return {p.site.layer: p.edit for p in steering.edits if p.site.layer is not None}


def first(edit: Edit) -> Tensor:
    """Return the direction of the largest singular value."""
    assert isinstance(edit, Gated)
    return edit.directions[0]


def cosines(lm: LanguageModel, even: bool = True, **fields: Any) -> list[float]:
    """Return the cosine of the first direction with the truth, for each of the twelve."""
    found = []
    for seed in SEEDS:
        drawn = truths(seed, even=even)
        edits = fit(context(lm, [t.sides for t in drawn], seed), **fields)
        assert list(edits) == list(range(LAYERS))
        found += [float(first(edits[layer]) @ t.u) for layer, t in enumerate(drawn)]
    return found


# What is found


@pytest.mark.parametrize("even", [True, False])
def test_singular_vectors_find_the_truth_and_its_sign(llama: LanguageModel, even: bool) -> None:
    assert min(cosines(llama, even)) > 0.95


def test_without_fixing_the_sign_some_point_to_the_bad_side(llama: LanguageModel) -> None:
    """Documents a failure of the published form, whose filter depends on this sign."""
    found = cosines(llama, sign="blind")
    assert min(map(abs, found)) > 0.95
    assert min(found) < -0.95


@pytest.mark.parametrize("even", mostly_slow([True, False], lambda even: even))
def test_ccs_finds_the_truth_and_its_sign(llama: LanguageModel, even: bool) -> None:
    assert min(cosines(llama, even, identify="ccs")) > 0.95


@pytest.mark.slow
def test_ccs_as_published_finds_an_even_truth_and_an_uneven_one_roughly(llama: LanguageModel) -> None:
    """AdamW moves all coordinates at one pace, so that the small ones of the truth come out too large."""
    assert min(cosines(llama, identify="ccs", optimizer="adamw")) > 0.95
    found = cosines(llama, even=False, identify="ccs", optimizer="adamw")
    assert 0.7 < min(found) < max(found) < 0.95


@pytest.mark.slow
def test_without_fixing_the_sign_a_probe_points_to_either_side(llama: LanguageModel) -> None:
    """Documents a failure of the published form."""
    found = cosines(llama, identify="ccs", sign="blind")
    assert min(map(abs, found)) > 0.95
    assert min(found) < 0 < max(found)


@pytest.mark.parametrize("identify", mostly_slow(["svd", "ccs"], lambda name: name == "svd"))
def test_version_1_removes_away_from_the_truth_and_boosts_toward_it(llama: LanguageModel, identify: str) -> None:
    for seed in SEEDS:
        drawn = truths(seed)
        edits = fit(context(llama, [t.sides for t in drawn], seed), version=1, identify=identify)
        assert 1 <= len(edits) < LAYERS
        for layer, edit in edits.items():
            assert isinstance(edit, RemoveBoost)
            assert float(edit.boost @ drawn[layer].u) > 0.95
            assert torch.equal(edit.remove, -edit.boost)
            assert edit.one_sided


def test_swapped_sides_flip_everything(llama: LanguageModel) -> None:
    sides = [t.sides for t in truths(0)]
    swapped = [Contrast(*s[::-1]) for s in sides]
    one, two = (fit(context(llama, s)) for s in (sides, swapped))
    for layer in range(LAYERS):
        torch.testing.assert_close(first(one[layer]), -first(two[layer]))


def test_ccs_depends_on_the_seed_and_svd_does_not(llama: LanguageModel) -> None:
    own = context(llama, [t.sides for t in truths(0)])
    for identify in ("svd", "ccs"):
        one, two, three = (first(fit(replace(own, seed=s), identify=identify)[0]) for s in (0, 0, 1))
        assert torch.equal(one, two)
        assert torch.equal(one, three) == (identify == "svd")


# What cannot be found


@pytest.mark.slow
def test_singular_vectors_of_each_class_find_the_mean_of_all_states(llama: LanguageModel) -> None:
    """Documents a failure: what is removed is nearly what is boosted, and neither is what the classes differ by."""
    drawn = truths(0, common=5.0)
    edits = fit(context(llama, [t.sides for t in drawn]), version=1, matrix="classes")
    for layer, edit in edits.items():
        assert isinstance(edit, RemoveBoost)
        for axis in (edit.remove, edit.boost):
            assert float(axis @ drawn[layer].mean) > 0.98
            assert abs(float(axis @ drawn[layer].u)) < 0.15
    right = fit(context(llama, [t.sides for t in drawn]), version=1)
    assert all(float(edit.boost @ drawn[layer].u) > 0.95 for layer, edit in right.items())  # type: ignore[operator]


@pytest.mark.parametrize("seed", mostly_slow(SEEDS, lambda seed: seed == SEEDS[0]))
def test_centring_each_class_before_ccs_loses_the_truth(llama: LanguageModel, seed: int) -> None:
    """Documents why the method leaves the states as they are."""
    truth = truths(seed)[0]
    probe = fit_ccs(truth.sides, context(llama, []).generator("alignez", 0), centre="class")
    assert abs(float(cosine_similarity(probe.weight, truth.u, dim=0))) < 0.5
    assert probe.direction(truth.sides) is None


# What is left out


def graded() -> Contrast:
    """Return pairs of which number i has a cosine of 1 - i / 30, with differences of unequal length."""
    angles = torch.arccos(1 - torch.arange(N_PAIRS) / 30)
    axes = torch.randn(N_PAIRS, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    axes = torch.linalg.qr(axes.transpose(1, 2)).Q.transpose(1, 2)
    other = angles.cos()[:, None] * axes[:, 0] + angles.sin()[:, None] * axes[:, 1]
    return Contrast(axes[:, 0] * torch.linspace(1, 5, N_PAIRS)[:, None], other * 2)


@pytest.mark.parametrize(("max_cosine", "kept"), [(0.95, 58), (0.81, 54), (0.21, 36), (-0.91, 2)])
def test_only_pairs_that_differ_count(llama: LanguageModel, max_cosine: float, kept: int) -> None:
    sides = graded()
    own, far = context(llama, [sides] * LAYERS), Contrast(*(side[-kept:] for side in sides))
    alone = context(llama, [far] * LAYERS)
    edits, expected = (fit(c, max_cosine=max_cosine, energy=1.0) for c in (own, alone))
    torch.testing.assert_close(first(edits[0]), first(expected[0]))
    assert own.report["pairs_and_directions"]["0"] == [kept, min(kept, WIDTH)]
    assert own.report == alone.report


@pytest.mark.parametrize("energy", [0.1, 0.5, 0.9, 0.99])
def test_directions_hold_the_energy_and_no_fewer_would(llama: LanguageModel, energy: float) -> None:
    own = context(llama, [graded()] * LAYERS)
    edit = fit(own, energy=energy)[0]
    assert isinstance(edit, Gated)
    differences = graded().apart(0.8).differences
    held = [(differences @ edit.directions[:k].T).square().sum() for k in range(len(edit.directions) + 1)]
    assert held[-2] < energy * differences.square().sum() <= held[-1]
    assert own.report["pairs_and_directions"]["0"][1] == len(edit.directions)


def test_layers_without_pairs_that_differ_are_left_out_and_counted(llama: LanguageModel) -> None:
    sides = truths(0)[0].sides
    alike = Contrast(sides.preferred, 2 * sides.preferred)
    one = Contrast(*(torch.cat([s[:1], t[1:]]) for s, t in zip(sides, alike, strict=True)))
    for identify in ("svd", "ccs"):
        own = context(llama, [alike, sides, one])
        edits = fit(own, identify=identify)
        assert list(edits) == [1]
        assert own.report == {"pairs_and_directions": {"0": [0, 0], "1": [N_PAIRS, 1], "2": [1, 0]}}


@pytest.mark.parametrize("fields", [{}, {"identify": "ccs"}, {"edit": "add"}], ids=str)
def test_where_no_layer_is_left_the_user_is_told(llama: LanguageModel, fields: dict[str, Any]) -> None:
    sides = truths(0)[0].sides
    own = context(llama, [Contrast(sides.preferred, sides.preferred * 0.5)] * LAYERS)
    with pytest.raises(SteerbenchError, match="no layer tells good answers from bad ones; use more training examples"):
        fit(own, **fields)


# What is said and asked


def test_reports_are_plain_values(llama: LanguageModel) -> None:
    sides = [t.sides for t in truths(0)]
    two, one = context(llama, sides), context(llama, sides)
    fit(two)
    fit(one, version=1)
    assert two.report == {"pairs_and_directions": {str(layer): [N_PAIRS, 1] for layer in range(LAYERS)}}
    losses = [fit_ccs(s, one.generator("alignez", layer), optimizer="lbfgs").loss for layer, s in enumerate(sides)]
    assert one.report["ccs_losses"] == losses
    assert one.report["layers"][0] == losses.index(min(losses))
    for report in (one.report, two.report):
        assert json.loads(json.dumps(report)) == report


def test_the_words_are_handed_on(llama: LanguageModel, words: list[tuple[str, str, int]]) -> None:
    own = context(llama, [t.sides for t in truths(0)])
    fit(own)
    fit(own, good="kind", bad="rude", n_queries=5)
    assert words == [("helpful", "useless", 200), ("kind", "rude", 5)]
