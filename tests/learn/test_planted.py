"""Planted truth: what methods find where one direction tells preferred from other replies, and it is known."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sklearn.decomposition import PCA
from thorough import mostly_slow
from torch import Tensor

from steerbench import Example, FitContext, LanguageModel, load
from steerbench.contract import tiny
from steerbench.data import Dialogue, plain_text, user
from steerbench.edits import Add, Gated, PlacedEdit, RemoveBoost, Site
from steerbench.engine.activations import Pool
from steerbench.learn import CCS, Contrast, Response, Tokens, contrast, difference_of_means, fit_ccs, self_generation
from steerbench.seeds import generator_for

SEEDS = range(10)
EACH_SEED = pytest.mark.parametrize("seed", mostly_slow(SEEDS, lambda seed: seed == 0))
QUIET, LOUD = 0.5, 2.0
"""Spread of the pairs' differences along an axis of no meaning; along the truth they are 1.5."""
EVERY_LAYER: dict[str, Any] = {"first_layer": 0, "last_layer": 2}


def truth(seed: int, site: Site) -> Tensor:
    """Return the direction planted at a site, (width,), at unit length.

    All its components are equally large: Adam, in the 1,000 steps of published CCS, moves all weights about equally
    far, and a direction with smaller ones among them is found with a cosine of about 0.9.
    """
    signs: Tensor = torch.randn(tiny.WIDTH, generator=generator_for(seed, "truth", site)).sign()
    return torch.nn.functional.normalize(signs, dim=0)


def idle(seed: int, site: Site) -> Tensor:
    """Return an axis along which pairs differ for no reason, (width,), orthogonal to the truth."""
    u = truth(seed, site)
    v = torch.randn(tiny.WIDTH, generator=generator_for(seed, "idle", site))
    return torch.nn.functional.normalize(v - (v @ u) * u, dim=0)


@dataclass(kw_only=True)
class Planted(FitContext):
    """States are base +- (3/4 truth + x/2 idle) + noise; each pair has a base and an x of its own.

    They are short, at most 2 long: CCS takes them as they are, and trains little where they are long.
    """

    other: float = QUIET
    """The spread of x."""

    def activations_at(self, sites: Sequence[Site], tokens: Sequence[Tokens], pool: Pool) -> dict[Site, list[Tensor]]:
        return {site: self._planted(site, tokens, pool) for site in sites}

    def _planted(self, site: Site, tokens: Sequence[Tokens], pool: Pool) -> list[Tensor]:
        u, v = truth(self.seed, site), idle(self.seed, site)
        return [self._state(site, t, u, v) for t in tokens]

    def _state(self, site: Site, tokens: Tokens, u: Tensor, v: Tensor) -> Tensor:
        text = self.lm.tokenizer.decode(tokens.prompt + tokens.response)
        side = -1 if re.search(r"Pretend|No\b", text) else 1
        pair = re.findall(r"Question (\d+)", text)
        of_pair = generator_for(self.seed, "pair", site, *pair)
        base, x = torch.randn(tiny.WIDTH, generator=of_pair), torch.randn((), generator=of_pair)
        noise = torch.randn(tiny.WIDTH, generator=generator_for(self.seed, "noise", site, *pair, side))
        return 0.15 * base + side * (0.75 * u + self.other / 2 * x * v) + 0.15 * noise


def planted(lm: LanguageModel, seed: int, other: float = QUIET) -> Planted:
    examples = [Example(str(i), str(i), user(f"Question {i}"), "Yes", "No") for i in range(120)]
    return Planted(lm=lm, examples=examples, reward=tiny.VowelReward(), seed=seed, other=other)


@pytest.fixture
def own_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model answer No where it is to pretend, and Yes elsewhere."""

    def answer(lm: LanguageModel, dialogues: Sequence[Dialogue], **settings: Any) -> list[Response]:
        words = ["No" if "Pretend" in plain_text(d) else "Yes" for d in dialogues]
        return [lm.cut(lm.tokens(d, word).response) for d, word in zip(dialogues, words, strict=True)]

    monkeypatch.setattr(self_generation, "generate", answer)


def fit(context: FitContext, name: str, **fields: Any) -> tuple[PlacedEdit, ...]:
    edits = load("methods", name)(**fields).fit(context).edits
    assert edits
    return edits


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def found(placed: PlacedEdit) -> Tensor:
    """Return the direction that an edit moves states in, the first of several."""
    assert isinstance(placed.edit, Add | Gated)
    return placed.edit.vector if isinstance(placed.edit, Add) else placed.edit.directions[0]


# States that are made up


@EACH_SEED
def test_caa_and_repe_find_it(llama: LanguageModel, seed: int) -> None:
    context = planted(llama, seed)
    (caa,), repe = fit(context, "caa"), fit(context, "repe", **EVERY_LAYER)
    assert len(repe) == 3
    for placed in (caa, *repe):
        assert cosine(found(placed), truth(seed, placed.site)) >= 0.95


@EACH_SEED
def test_iti_finds_it_in_every_head(llama: LanguageModel, seed: int) -> None:
    edits = fit(planted(llama, seed), "iti", n_heads=tiny.HEADS * tiny.LAYERS)
    assert [str(p.site) for p in edits] == ["z.0", "z.1", "z.2"]
    for placed in edits:
        heads = zip(found(placed).chunk(tiny.HEADS), truth(seed, placed.site).chunk(tiny.HEADS), strict=True)
        assert min(cosine(vector, u) for vector, u in heads) >= 0.95


@EACH_SEED
@pytest.mark.parametrize(("identify", "optimizer"), [("svd", "lbfgs"), ("ccs", "lbfgs"), ("ccs", "adamw")])
@pytest.mark.usefixtures("own_replies")
def test_version_1_of_alignez_finds_it(llama: LanguageModel, seed: int, identify: str, optimizer: str) -> None:
    """On a model cut to one block, since a probe is trained for each."""
    llama.anatomy.blocks = llama.anatomy.blocks[:1]
    (placed,) = fit(planted(llama, seed), "alignez", version=1, identify=identify, optimizer=optimizer)
    assert isinstance(placed.edit, RemoveBoost)
    assert cosine(placed.edit.boost, truth(seed, placed.site)) >= 0.95
    assert torch.equal(placed.edit.remove, -placed.edit.boost)


@EACH_SEED
@pytest.mark.usefixtures("own_replies")
def test_version_2_of_alignez_finds_it(llama: LanguageModel, seed: int) -> None:
    edits = fit(planted(llama, seed), "alignez", edit="tanh")  # relu has them turned around
    assert len(edits) == 3
    for placed in edits:
        assert cosine(found(placed), truth(seed, placed.site)) >= 0.95


@EACH_SEED
def test_ablation_finds_it_and_takes_it_out(llama: LanguageModel, seed: int) -> None:
    for placed in fit(planted(llama, seed), "ablation"):
        direction: Any = placed.edit.direction
        assert cosine(direction, truth(seed, Site("resid_post", 1))) <= -0.95


@pytest.mark.slow
@pytest.mark.usefixtures("own_replies")
def test_the_published_sign_is_left_to_chance(llama: LanguageModel) -> None:
    cosines = [
        cosine(found(placed), truth(seed, placed.site))
        for seed in SEEDS
        for placed in fit(planted(llama, seed), "alignez", sign="blind")
    ]
    assert min(map(abs, cosines)) >= 0.95
    assert min(cosines) < 0 < max(cosines)


# What fails


def sides(llama: LanguageModel, seed: int, other: float) -> tuple[Contrast, Tensor]:
    site = Site("resid_post", 1)
    return contrast(planted(llama, seed, other), site, "last_response"), truth(seed, site)


def pca(differences: Tensor) -> Tensor:
    return torch.from_numpy(PCA(n_components=1).fit(differences.double().numpy()).components_[0]).float()


def class_centred(states: Contrast, seed: int) -> CCS:
    return fit_ccs(states, torch.Generator().manual_seed(seed), centre="class")


@EACH_SEED
@pytest.mark.parametrize("other", [QUIET, LOUD])
def test_what_centres_loses_it_at_any_signal(llama: LanguageModel, seed: int, other: float) -> None:
    """A PCA of the differences subtracts their mean, and CCS centred by class that of each side: the truth itself."""
    states, u = sides(llama, seed, other)
    assert cosine(difference_of_means(states), u) > 0.9
    axis, probe = pca(states.differences), class_centred(states, seed)
    assert abs(cosine(axis, u)) < 0.3
    assert abs(cosine(axis, idle(seed, Site("resid_post", 1)))) > 0.9
    assert abs(cosine(probe.weight, u)) < 0.4
    assert probe.direction(states) is None


@EACH_SEED
@pytest.mark.usefixtures("own_replies")
def test_where_other_variation_exceeds_it_every_pca_fails_and_means_do_not(llama: LanguageModel, seed: int) -> None:
    """And the report says so: the axis that was found is not that of the difference of means."""
    context = planted(llama, seed, LOUD)
    (caa,) = fit(context, "caa")
    assert cosine(found(caa), truth(seed, caa.site)) > 0.9
    for placed in (*fit(context, "repe", **EVERY_LAYER), *fit(context, "alignez")):
        assert abs(cosine(found(placed), truth(seed, placed.site))) < 0.6
    assert max(context.report["cosine_with_difference_of_means"].values()) < 0.6


# States of a model


def with_a_telling_mark(seed: int) -> tuple[LanguageModel, Tensor]:
    """Return a tiny model in which `!` is embedded as `?` is, plus 400 times a direction, and the direction."""
    lm = tiny.language_model(seed=seed)
    u = torch.nn.functional.normalize(torch.randn(tiny.WIDTH, generator=generator_for(seed, "u")), dim=0)
    (good,), (bad,) = (lm.tokenizer(mark)["input_ids"] for mark in "!?")
    embedding = lm.model.get_input_embeddings().weight
    embedding[good] = embedding[bad] + 400 * u
    return lm, u


@EACH_SEED
def test_a_direction_in_the_embeddings_is_found_in_the_blocks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preferred replies end in `!` and others in `?`; nothing else tells them apart, and each query has its own."""
    lm, u = with_a_telling_mark(seed)

    def answer(lm: LanguageModel, dialogues: Sequence[Dialogue], **settings: Any) -> list[Response]:
        texts = [f"I see{'?' if 'Pretend' in plain_text(d) else '!'}" for d in dialogues]
        return [lm.cut(lm.tokens(d, text).response) for d, text in zip(dialogues, texts, strict=True)]

    monkeypatch.setattr(self_generation, "generate", answer)
    examples = [Example(str(i), str(i), user(f"Question {i}"), f"Good {i}!", f"Good {i}?") for i in range(20)]
    context = FitContext(lm=lm, examples=examples, reward=tiny.VowelReward(), seed=seed)
    replies: dict[str, Any] = {"pairs": "preferences", "pool": "last_response"}
    edits = [
        *(fit(context, "caa", pool="last_response", layer=layer)[0] for layer in range(3)),
        *fit(context, "repe", **EVERY_LAYER, **replies),
        *fit(context, "alignez", site="resid_post", edit="tanh"),
    ]
    assert len(edits) == 9
    assert min(cosine(found(placed), u) for placed in edits) >= 0.95
