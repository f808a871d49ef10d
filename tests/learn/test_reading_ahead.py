"""What trials that differ in layer and pool read: texts once as asked, and a second time for all of them."""

from typing import Any

import pytest
import torch

from steerbench import FitContext
from steerbench.contract import tiny
from steerbench.engine.activations import Pool, activations, pooled_at
from steerbench.learn import context as learn
from steerbench.models.language_model import LanguageModel, Tokens
from steerbench.models.sites import Site

POOLS: tuple[Pool, ...] = ("last_prompt", "last_response", "response_mean")


@pytest.fixture
def context() -> FitContext:
    return FitContext(lm=tiny.language_model(), examples=tiny.examples()[:6], reward=tiny.VowelReward())


@pytest.fixture
def texts(context: FitContext) -> list[Tokens]:
    return [pair.chosen for pair in context.pairs()]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many sites and pools each pass over texts has read."""
    seen: list[tuple[int, int]] = []

    def count(lm: LanguageModel, sites: Any, pools: Any, tokens: Any, **more: Any) -> Any:
        seen.append((len(sites), len(pools)))
        return pooled_at(lm, sites, pools, tokens, **more)

    monkeypatch.setattr(learn, "pooled_at", count)
    return seen


def test_trials_over_layers_and_pools_read_the_texts_twice(
    context: FitContext, texts: list[Tokens], passes: list[tuple[int, int]]
) -> None:
    layers = context.lm.n_layers
    for pool in POOLS:
        for layer in range(layers):
            context.activations(Site("resid_post", layer), texts, pool)
    assert passes == [(1, 1), (layers, 3)]


@pytest.mark.parametrize("name", ["resid_post", "z", "mlp_out"])
def test_what_was_read_ahead_is_what_is_read_alone(context: FitContext, texts: list[Tokens], name: Any) -> None:
    context.activations(Site(name, 0), texts, "last_prompt")
    for layer in range(context.lm.n_layers):
        for pool in POOLS:
            site = Site(name, layer)
            found, alone = context.activations(site, texts, pool), activations(context.lm, site, texts, pool)
            assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


def test_other_texts_and_other_names_of_sites_are_read_as_asked(
    context: FitContext, texts: list[Tokens], passes: list[tuple[int, int]]
) -> None:
    context.activations(Site("resid_post", 0), texts, "last_prompt")
    context.activations(Site("z", 0), texts, "last_prompt")
    context.activations(Site("resid_post", 1), texts[:3], "last_prompt")
    assert passes == [(1, 1)] * 3


def test_prompts_have_no_pool_of_responses(context: FitContext, passes: list[tuple[int, int]]) -> None:
    prompts = [context.lm.tokens(e.prompt) for e in context.examples]
    for layer in (0, 1):
        context.activations(Site("resid_post", layer), prompts, "last_prompt")
    assert passes == [(1, 1), (context.lm.n_layers, 1)]


def test_all_positions_are_read_as_asked(
    context: FitContext, texts: list[Tokens], passes: list[tuple[int, int]]
) -> None:
    for pool in ("last_prompt", "all", "all"):
        context.activations(Site("final"), texts, pool)
    assert passes == [(1, 1)] * 2
    assert context.activations(Site("final"), [], "last_prompt") == []


def test_what_would_be_much_to_keep_is_read_as_asked(
    context: FitContext, texts: list[Tokens], passes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = context.lm.n_layers * len(POOLS) * len(texts) * 4 * tiny.WIDTH
    monkeypatch.setattr(learn, "READ_AHEAD", needed - 1)
    for layer in (0, 1):
        context.activations(Site("resid_post", layer), texts, "response_mean")
    assert passes == [(1, 1)] * 2
    monkeypatch.setattr(learn, "READ_AHEAD", needed)
    context.activations(Site("resid_post", 0), texts, "last_prompt")
    assert passes[2:] == [(context.lm.n_layers, len(POOLS))]
