"""Activations are those of one unpadded forward pass, whatever the batch; reading leaves no trace."""

import itertools
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from steerbench import Decoding, LanguageModel, SteerbenchError, generate
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Site
from steerbench.engine.activations import Pool, _named
from steerbench.learn import Tokens, activations
from steerbench.models.sites import SITE_NAMES

POOLS: tuple[Pool, ...] = get_args(Pool)
SEQUENCES = [
    Tokens((5,), (6, 7, 8, 2)),
    Tokens((30, 9, 10, 11, 200, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17), (12,)),  # beyond a window of 16
    Tokens((13, 14), (15, 16)),
    Tokens((0, 1, 2), (0, 1)),  # special tokens, the pad token too
]


def naive(lm: LanguageModel, site: Site, tokens: Tokens) -> Tensor:
    """Run one sequence without padding and mask; return (tokens, width)."""
    seen: list[Tensor] = []
    place = lm.anatomy.place(site)

    def keep(value: Any) -> None:
        seen.append((value if isinstance(value, Tensor) else value[0]).clone())

    if place.side == "input":
        handle = place.module.register_forward_pre_hook(lambda m, a: keep(a[0]))
    else:
        handle = place.module.register_forward_hook(lambda m, a, o: keep(o))
    with torch.no_grad():
        output = lm.model(torch.tensor([tokens.prompt + tokens.response]), output_hidden_states=True)
    handle.remove()
    states = seen[0].reshape(output.logits.shape[1], -1)
    if site.name == "resid_post" and site.layer != lm.n_layers - 1:
        assert site.layer is not None
        assert torch.equal(states, output.hidden_states[site.layer + 1][0])
    return states


def pooled(states: Tensor, tokens: Tokens, pool: Pool) -> Tensor:
    n = len(tokens.prompt)
    return {"last_prompt": states[n - 1], "last_response": states[-1], "response_mean": states[n:].mean(0)}.get(
        pool, states
    )


@pytest.mark.parametrize("site", SITE_NAMES)
def test_pools_equal_one_unpadded_pass(lm: LanguageModel, site: Any) -> None:
    place = Site(site, None if site == "final" else 2)
    states = [naive(lm, place, tokens) for tokens in SEQUENCES]
    for pool, batch_size in itertools.product(POOLS, (1, 3, 8)):
        got = activations(lm, place, SEQUENCES, pool, batch_size=batch_size)
        for a, whole, tokens in zip(got, states, SEQUENCES, strict=True):
            b = pooled(whole, tokens, pool)
            assert (a.dtype, a.shape) == (torch.float32, b.shape)
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_hidden_states_of_the_model_agree(lm: LanguageModel) -> None:
    for tokens in SEQUENCES:
        with torch.no_grad():
            output = lm.model(torch.tensor([tokens.prompt + tokens.response]), output_hidden_states=True)
        for site, states in (
            (Site("resid_post", 0), output.hidden_states[1]),
            (Site("final"), output.hidden_states[-1]),
        ):
            (got,) = activations(lm, site, [tokens], "all")
            torch.testing.assert_close(got, states[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("site", SITE_NAMES)
def test_reading_early_leaves_the_model_usable(lm: LanguageModel, site: Any) -> None:
    prompts = [user("Hi"), user("How are you?")]
    before = generate(lm, prompts, decoding=Decoding(max_new_tokens=2))
    activations(lm, Site(site, None if site == "final" else 0), SEQUENCES, "all")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert generate(lm, prompts, decoding=Decoding(max_new_tokens=2)) == before
    assert len(lm.model(torch.tensor([[5, 6]]), output_hidden_states=True).hidden_states) == lm.n_layers + 1


def test_what_lies_behind_the_site_is_not_computed(llama: LanguageModel) -> None:
    def unreachable(*args: object) -> None:
        raise AssertionError("computed in vain")

    llama.anatomy.blocks[1].register_forward_pre_hook(unreachable)
    activations(llama, Site("resid_post", 0), SEQUENCES, "all")


def test_an_exception_leaves_no_hook(llama: LanguageModel) -> None:
    with pytest.raises(IndexError):
        activations(llama, Site("resid_post", 2), [Tokens((10**6,))], "all")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.model.modules())


def test_half_precision_is_returned_and_averaged_in_float32(family: str) -> None:
    lm = tiny.language_model(family)
    lm.model.to(torch.bfloat16)
    tokens = Tokens((5, 6), tuple(range(3, 60)))
    states = activations(lm, Site("resid_post", 1), [tokens], "all")[0]
    mean = activations(lm, Site("resid_post", 1), [tokens], "response_mean")[0]
    assert states.dtype == mean.dtype == torch.float32
    torch.testing.assert_close(mean, states[2:].mean(0))


def test_a_pooled_vector_does_not_keep_its_batch_in_memory(llama: LanguageModel) -> None:
    for pool in ("last_prompt", "last_response", "response_mean"):
        (vector,) = activations(llama, Site("resid_post", 0), SEQUENCES[:1], pool)
        assert vector.untyped_storage().nbytes() == vector.numel() * 4


@pytest.mark.parametrize("pool", ["last_response", "response_mean"])
def test_an_empty_response_is_named(llama: LanguageModel, pool: Pool) -> None:
    with pytest.raises(SteerbenchError, match=f"pool '{pool}' needs responses; sequence 1 has none"):
        activations(llama, Site("final"), [Tokens((5,), (6,)), Tokens((7, 8))], pool)


def test_prompts_alone(llama: LanguageModel) -> None:
    (last,) = activations(llama, Site("final"), [Tokens((5, 6))], "last_prompt")
    (both,) = activations(llama, Site("final"), [Tokens((5, 6))], "all")
    assert torch.equal(last, both[1])
    assert both.shape == (2, 32)


@pytest.mark.parametrize(("n", "named"), [(1, "z.0"), (3, "z.0, z.1, z.2"), (30, "z.0 to z.29")])
def test_a_stage_names_its_sites_in_one_line(n: int, named: str) -> None:
    assert _named([Site("z", layer) for layer in range(n)]) == named


def test_unknown_pool(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match="unknown pool 'last'"):
        activations(llama, Site("final"), SEQUENCES, "last")  # type: ignore[arg-type]
