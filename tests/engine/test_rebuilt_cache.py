"""A model that throws its cache away while it generates, as Phi-3 does where LongRoPE goes on to its long factors."""

from inspect import getsource
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconMambaConfig, Phi3Config, Phi3ForCausalLM

from steerbench import Decoding, LanguageModel, SteerbenchError, Steering, generate, steered
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.engine.forward_passes import CACHE, given_cache, left_cache
from steerbench.engine.hooks import hook
from steerbench.learn import Tokens
from steerbench.steering.parts import Scope

BORDER = 9
STEPS = 8
REREADS = "next_sequence_length" in getsource(Phi3ForCausalLM.prepare_inputs_for_generation)
"""Whether the text is read again behind the border; transformers 5.17 goes on with its last token alone."""
SITE = Site("resid_post", 1)
VECTOR = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def phi() -> LanguageModel:
    """Return a Phi-3 whose positions change behind BORDER."""
    config = tiny.FAMILIES["phi3"]().to_dict() | {"original_max_position_embeddings": BORDER}
    rope: dict[str, Any] = {"rope_type": "longrope", "original_max_position_embeddings": BORDER, "rope_theta": 1e4}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [5.0] * 4}
    model = AutoModelForCausalLM.from_config(Phi3Config(**config | {"rope_parameters": rope, "rope_scaling": None}))
    tiny._randomise(model, 0)
    return LanguageModel(model.eval().requires_grad_(False), tiny.tokenizer())


def adding(scope: Scope) -> Steering:
    return Steering(edits=(PlacedEdit(SITE, Add(VECTOR, 2.0), scope),))


def scores(lm: LanguageModel, prompts: list[tuple[int, ...]], steering: Steering, *, use_cache: bool) -> torch.Tensor:
    """Return the logits of STEPS steps of the model's own `generate`, (steps, rows, vocabulary)."""
    batch = lm.left_padded([Tokens(prompt) for prompt in prompts])
    with steered(lm, steering):
        out = lm.model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=STEPS,
            eos_token_id=None,
            do_sample=False,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return torch.stack(out.logits)


@pytest.mark.parametrize(
    "prompts", [[(5, 6, 7, 8)], [(5, 6, 7, 8, 9, 10), (11, 12)], [tuple(range(5, 17)), (5,)], [(5,)]]
)
@pytest.mark.parametrize("scope", ["all", "prompt", "response"])
def test_scopes_hold_across_the_border(phi: LanguageModel, scope: Scope, prompts: list[tuple[int, ...]]) -> None:
    longest = max(map(len, prompts))
    if not REREADS and longest <= BORDER < longest + STEPS:
        with pytest.raises(SteerbenchError, match="neither continues the one before it nor repeats"):
            scores(phi, prompts, adding(scope), use_cache=True)
        return
    cached, recomputed = (scores(phi, prompts, adding(scope), use_cache=use_cache) for use_cache in (True, False))
    torch.testing.assert_close(cached, recomputed, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(cached, scores(phi, prompts, Steering(), use_cache=True), atol=0.1)


def test_the_border_is_the_end_of_the_context(phi: LanguageModel) -> None:
    """Behind it, all positions of a batch change as soon as one row has come so far."""
    assert phi.context_length == BORDER
    with pytest.raises(SteerbenchError, match=f"do not fit the context of {BORDER}"):
        generate(phi, [user("a")], decoding=Decoding(max_new_tokens=4))
    assert tiny.language_model("phi3").context_length == tiny.CONTEXT


@pytest.mark.parametrize("widths", [(3, 4), (3, 1, 5), (1, 2)])
def test_a_pass_of_one_column_more_than_seen_may_continue_a_cache(
    llama: LanguageModel, widths: tuple[int, ...]
) -> None:
    ids = torch.tensor([list(range(5, 5 + sum(widths)))])
    touched = torch.arange(ids.shape[1])[:, None] >= widths[0] - 1  # from the last column of the first pass on
    handle = hook(llama.anatomy.place(SITE), lambda h: h + touched * 2.0 * VECTOR)
    expected = llama.model(input_ids=ids).logits
    handle.remove()
    cache, found = None, []
    with steered(llama, adding("response")), torch.no_grad():
        for part in torch.split(ids, list(widths), dim=1):
            out = llama.model(input_ids=part, use_cache=True, **{CACHE: cache})
            cache = left_cache(out)
            found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=1e-4, atol=1e-4)


def test_a_cache_is_known_by_both_names_if_it_counts_columns(llama: LanguageModel) -> None:
    cache = left_cache(llama.model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True))
    assert cache.get_seq_length() == 3
    assert given_cache({"cache": cache}) is given_cache({"past_key_values": cache}) is cache
    assert given_cache({}) is given_cache({"cache": None}) is given_cache({"cache": object()}) is None
    assert left_cache(llama.model(input_ids=torch.tensor([[5]]), use_cache=False)) is None


def test_a_state_that_is_no_cache_is_refused() -> None:
    """Mamba says nothing of how many columns its state has seen."""
    config = FalconMambaConfig(vocab_size=259, hidden_size=tiny.WIDTH, num_hidden_layers=2, state_size=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    with (
        pytest.raises(SteerbenchError, match="neither continues the one before it"),
        steered(model, adding("response")),
    ):
        model.generate(input_ids=torch.tensor([[5, 6, 7]]), min_new_tokens=4, max_new_tokens=4, do_sample=False)


def test_caches_and_searches_that_a_checkpoint_asks_for() -> None:
    """Those of its generation settings: `generate` has its own, `steered` works with the one and refuses the other."""
    usual = scores(tiny.language_model(), [(5, 6)], adding("response"), use_cache=True)
    prompts, few = [user("Hi"), user("Why?")], Decoding(max_new_tokens=4)
    expected = generate(tiny.language_model(), prompts, adding("all"), few)
    lm = tiny.language_model()
    lm.model.generation_config.cache_implementation = "static"
    torch.testing.assert_close(scores(lm, [(5, 6)], adding("response"), use_cache=True), usual, rtol=1e-4, atol=1e-4)
    lm.model.generation_config.num_beams = 3
    assert generate(lm, prompts, adding("all"), few) == expected
    with pytest.raises(SteerbenchError, match="num_beams"):
        scores(lm, [(5, 6)], adding("response"), use_cache=True)
