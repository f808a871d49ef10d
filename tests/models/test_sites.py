"""Every site is where its name says: checked by sums and products of the activations, not by module names."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    GPTJConfig,
    LlamaModel,
    MambaConfig,
    MixtralConfig,
    MptConfig,
    Qwen2MoeConfig,
)
from transformers.activations import ACT2FN

from steerbench import LanguageModel, SteerbenchError
from steerbench.contract import tiny
from steerbench.edits import Site
from steerbench.models.sites import SITE_NAMES, Anatomy, Place

IDS = torch.tensor([[5, 60, 7, 8, 200, 9]])
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")


@pytest.fixture(params=sorted(tiny.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Every one, always: what is checked here is what differs between families."""
    return str(request.param)


@contextmanager
def reading(places: dict[str, Place]) -> Iterator[dict[str, Tensor]]:
    """Record activations with hooks of our own."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: Any) -> None:
        seen[name] = (value if isinstance(value, Tensor) else value[0]).clone()  # Falcon adds in place

    handles = []
    for name, place in places.items():
        if place.side == "input":
            handles.append(place.module.register_forward_pre_hook(lambda m, a, n=name: keep(n, a[0])))
        else:
            handles.append(place.module.register_forward_hook(lambda m, a, o, n=name: keep(n, o)))
    yield seen
    for handle in handles:
        handle.remove()


def read(lm: LanguageModel, *sites: Site) -> tuple[list[Tensor], Any]:
    """Return the activation at each site, (1, positions, width), and the model's output with hidden states."""
    with reading({str(site): lm.anatomy.place(site) for site in sites}) as seen, torch.no_grad():
        output = lm.model(input_ids=IDS, attention_mask=torch.ones_like(IDS), output_hidden_states=True)
    return [seen[str(site)].reshape(1, IDS.shape[1], -1) for site in sites], output


def test_widths(lm: LanguageModel) -> None:
    config = lm.model.config
    heads = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * config.hidden_size
    widths = {"z": heads, "mlp_pre": 2 * inner if config.model_type == "phi3" else inner}  # Phi-3 fuses gate and up
    sites = [Site(name, None if name == "final" else 1) for name in SITE_NAMES]  # type: ignore[arg-type]
    for site, activation in zip(sites, read(lm, *sites)[0], strict=True):
        assert activation.shape[-1] == widths.get(site.name, config.hidden_size)


def test_resid_pre_is_what_the_block_below_returns(lm: LanguageModel) -> None:
    layers = range(lm.n_layers)
    before, output = read(lm, *(Site("resid_pre", layer) for layer in layers))
    after, _ = read(lm, *(Site("resid_post", layer) for layer in layers))
    torch.testing.assert_close(before[0], output.hidden_states[0], rtol=0, atol=0)
    for layer in layers[1:]:
        torch.testing.assert_close(before[layer], after[layer - 1], rtol=0, atol=0)


def test_mlp_pre_through_the_activation_makes_mlp_out(lm: LanguageModel) -> None:
    config = lm.model.config
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    activation = ACT2FN[next(getattr(config, name) for name in names if isinstance(getattr(config, name, None), str))]
    for layer in range(lm.n_layers):
        maps = [m for name, m in lm.anatomy.blocks[layer].named_modules() if is_feed_forward_map(name)]
        up = maps[1] if len(maps) == 3 else maps[0]
        places = {"pre": lm.anatomy.place(Site("mlp_pre", layer)), "out": lm.anatomy.place(Site("mlp_out", layer))}
        with reading(places | {"up": Place(up, "output")}) as seen, torch.no_grad():
            lm.model(input_ids=IDS, attention_mask=torch.ones_like(IDS))
            if config.model_type == "phi3":
                gate, up_part = seen["pre"].chunk(2, -1)
                inner = activation(gate) * up_part
            else:
                inner = activation(seen["pre"]) * (seen["up"] if len(maps) == 3 else 1)
            torch.testing.assert_close(maps[-1](inner), seen["out"])


def is_feed_forward_map(name: str) -> bool:
    maps = ("gate_proj", "up_proj", "gate_up_proj", "down_proj", "fc1", "fc2", "c_fc", "mlp.c_proj")
    return name.endswith((*maps, "dense_h_to_4h", "dense_4h_to_h"))


def test_resid_post_is_what_the_next_block_receives(lm: LanguageModel) -> None:
    layers = range(lm.n_layers - 1)  # the last of `hidden_states` is behind the final norm
    states, output = read(lm, *(Site("resid_post", layer) for layer in layers))
    for layer, state in zip(layers, states, strict=True):
        torch.testing.assert_close(state, output.hidden_states[layer + 1], rtol=0, atol=0)


def test_final_is_the_normed_last_block_and_makes_the_logits(lm: LanguageModel) -> None:
    (last, final), output = read(lm, Site("resid_post", lm.n_layers - 1), Site("final"))
    norms = [m for name, m in lm.model.named_modules() if name.split(".")[-1] in FINAL_NORMS and name.count(".") < 3]
    assert len(norms) == 1
    with torch.no_grad():
        torch.testing.assert_close(norms[0](last), final)
        logits = lm.anatomy.head(final)
    if cap := getattr(lm.model.config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    torch.testing.assert_close(logits, output.logits)
    torch.testing.assert_close(final, output.hidden_states[-1])


def test_z_times_the_projection_is_attn_out(lm: LanguageModel) -> None:
    for layer in range(lm.n_layers):
        (z, attn_out), _ = read(lm, Site("z", layer), Site("attn_out", layer))
        projection: Any = lm.anatomy.place(Site("z", layer)).module
        weight = projection.weight if isinstance(projection, nn.Linear) else projection.weight.T  # GPT-2's Conv1D
        torch.testing.assert_close(functional.linear(z, weight, projection.bias), attn_out)


def test_attention_and_feed_forward_sum_up_to_the_residual(lm: LanguageModel) -> None:
    for layer in range(lm.n_layers):
        (attn_out, mlp_out, _), output = read(lm, Site("attn_out", layer), Site("mlp_out", layer), Site("final"))
        ((resid_post,), _) = read(lm, Site("resid_post", layer))
        block: Any = lm.anatomy.blocks[layer]
        with torch.no_grad():
            if lm.model.config.model_type == "gemma2":  # norms stand behind both parts
                attn_out = block.post_attention_layernorm(attn_out)
                mlp_out = block.post_feedforward_layernorm(mlp_out)
        torch.testing.assert_close(output.hidden_states[layer] + attn_out + mlp_out, resid_post)


def test_experts_are_one_feed_forward_part() -> None:
    """As many experts as layers: two module lists of the right length, and linear maps only in the router."""
    config = MixtralConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_local_experts=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    test_attention_and_feed_forward_sum_up_to_the_residual(LanguageModel(model, tiny.tokenizer()))


def test_bfloat16_weights_resolve(family: str) -> None:
    lm = tiny.language_model(family)
    lm.model.to(torch.bfloat16)
    sites = [Site(name, None if name == "final" else 2) for name in SITE_NAMES]  # type: ignore[arg-type]
    assert {a.dtype for a in read(lm, *sites)[0]} == {torch.bfloat16}


def test_resolving_leaves_no_hook(lm: LanguageModel) -> None:
    lm.anatomy.place(Site("z", 0))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_a_failing_probe_leaves_no_hook(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(llama.model, "forward", broken)
    with pytest.raises(SteerbenchError, match="fails on a short text: broken"):
        llama.anatomy.place(Site("z", 0))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.model.modules())


@pytest.mark.parametrize("name", [name for name in SITE_NAMES if name != "final"])
@pytest.mark.parametrize("layer", [-1, 3, 10**6])
def test_layer_outside_the_model(llama: LanguageModel, name: Any, layer: int) -> None:
    with pytest.raises(SteerbenchError, match=rf"layer {layer} of site {name}\.{layer} is outside 0\.\.2"):
        llama.anatomy.place(Site(name, layer))


def test_malformed_sites() -> None:
    with pytest.raises(SteerbenchError, match="'final' takes no layer"):
        Site("final", 3)
    with pytest.raises(SteerbenchError, match="'z' needs a layer"):
        Site("z")
    with pytest.raises(SteerbenchError, match="Did you mean 'resid_post'"):
        Site("resid_pos", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("site", [Site("final"), Site("z", 0), Site("resid_post", 31)])
def test_text_form_round_trips(site: Site) -> None:
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize("text", ["", "final.1", "resid_post", "resid_post.x", "resid_post.-1", "resid_post.1.2", "z."])
def test_malformed_text_forms(text: str) -> None:
    with pytest.raises(SteerbenchError):
        Site.parse(text)


def test_model_without_attention_names_what_is_missing() -> None:
    config = MambaConfig(vocab_size=259, hidden_size=16, num_hidden_layers=2, state_size=4)
    anatomy = Anatomy(AutoModelForCausalLM.from_config(config))
    for name in ("z", "attn_out", "mlp_pre", "mlp_out"):
        with pytest.raises(
            SteerbenchError, match="MambaForCausalLM is not supported: could not find the attention of block 1"
        ):
            anatomy.place(Site(name, 1))
    assert anatomy.place(Site("resid_post", 1)) == (anatomy.blocks[1], "output")
    assert anatomy.place(Site("resid_pre", 1)) == (anatomy.blocks[1], "input")
    assert anatomy.place(Site("final")).module is anatomy.head


def test_heterogeneous_blocks(llama: LanguageModel) -> None:
    """One block has lost its attention, another its feed-forward part; the others still resolve."""

    class NoAttention(nn.Module):
        def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
            return torch.zeros_like(hidden_states), None

    blocks: Any = llama.anatomy.blocks
    blocks[1].self_attn = NoAttention()
    blocks[2].mlp = nn.Identity()
    assert llama.anatomy.place(Site("z", 0)).module is blocks[0].self_attn.o_proj
    assert llama.anatomy.place(Site("z", 2)).module is blocks[2].self_attn.o_proj
    with pytest.raises(SteerbenchError, match="the attention of block 1"):
        llama.anatomy.place(Site("z", 1))
    for name in ("mlp_pre", "mlp_out"):
        with pytest.raises(SteerbenchError, match="the feed-forward part of block 2"):
            llama.anatomy.place(Site(name, 2))


def test_model_without_blocks_or_head_names_what_is_missing() -> None:
    config = tiny.FAMILIES["llama"]()
    headless = LlamaModel(config)
    with pytest.raises(SteerbenchError, match="LlamaModel is not supported: could not find the output embedding"):
        Anatomy(headless).place(Site("final"))
    headless.layers = headless.layers[:1]
    with pytest.raises(SteerbenchError, match="could not find a module list of 3 decoder blocks"):
        Anatomy(headless).place(Site("resid_post", 0))


LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
OTHERS: dict[str, tuple[Any, dict[str, int], list[str]]] = {
    "bloom": (
        BloomConfig,
        {"hidden_size": 32, "n_layer": 3, "n_head": 4},
        ["self_attention.dense", "mlp.dense_4h_to_h", "mlp.dense_h_to_4h"],
    ),
    "gptj": (
        GPTJConfig,
        {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 8},
        ["attn.out_proj", "mlp", "mlp.fc_in"],
    ),
    "mpt": (MptConfig, {"d_model": 32, "n_layers": 3, "n_heads": 4}, ["attn.out_proj", "ffn.down_proj", "ffn.up_proj"]),
    "mixtral": (MixtralConfig, {**LLAMA_LIKE, "num_local_experts": 2}, ["self_attn.o_proj", "mlp", ""]),
    "qwen2_moe": (
        Qwen2MoeConfig,
        {**LLAMA_LIKE, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
        ["self_attn.o_proj", "mlp", ""],
    ),
    "cohere": (CohereConfig, LLAMA_LIKE, ["self_attn.o_proj", "mlp", "mlp.gate_proj"]),
}
"""Family -> configuration; output projection, feed-forward part and, where there is one, its first map in a block."""


@pytest.mark.parametrize("name", OTHERS)
def test_families_that_nobody_listed_resolve_too(name: str) -> None:
    """Mixture of experts, parallel blocks, other names: nothing in the engine knows these."""
    cls, shape, (attention, feed_forward, first_map) = OTHERS[name]
    model = AutoModelForCausalLM.from_config(
        cls(vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape)
    )
    anatomy = Anatomy(model)
    block = anatomy.blocks[1]
    assert anatomy.place(Site("attn_out", 1)) == (block.get_submodule(attention), "output")
    assert anatomy.place(Site("z", 1)) == (block.get_submodule(attention), "input")
    assert anatomy.place(Site("mlp_out", 1)) == (block.get_submodule(feed_forward), "output")
    assert anatomy.place(Site("final")) == (model.get_output_embeddings(), "input")
    if first_map:
        assert anatomy.place(Site("mlp_pre", 1)) == (block.get_submodule(first_map), "output")
    else:  # each expert has its own
        with pytest.raises(SteerbenchError, match="one linear map before the activation of the feed-forward part in"):
            anatomy.place(Site("mlp_pre", 1))
