"""Sites where a model is no plain stack of attention and feed-forward part with one residual stream."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from fitted_iti import context
from thorough import mostly_slow
from torch import Tensor

from steerbench import Decoding, LanguageModel, SteerbenchError, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.engine.hooks import hook, watched
from steerbench.engine.logits import response_logits
from steerbench.models.language_model import Tokens
from steerbench.models.sites import Place

IDS = torch.tensor([[5, 60, 7, 8, 200, 9]])
FEW = Decoding(max_new_tokens=4)
PROMPTS = [user("Hi"), user("How do I bake a loaf of bread?")]


@torch.no_grad()
def blocks_output(lm: LanguageModel, layer: int, place: Place | None = None, add: Tensor | None = None) -> Tensor:
    """Return what a block puts out, (1, positions, width), with `add` added at a place."""
    seen: list[Tensor] = []
    handle = hook(place, lambda h: h + add) if place is not None and add is not None else None
    with watched(Place(lm.anatomy.blocks[layer], "output"), lambda h: seen.append(h.clone())):
        lm.model(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False)
    if handle:
        handle.remove()
    return seen[0]


@pytest.mark.parametrize("kind", ["bloom", "mpt", "jamba", "lfm2", "granitemoehybrid", "nemotron_h"])
def test_what_is_added_to_mlp_out_is_added_to_the_residual_stream_once(kind: str) -> None:
    lm = architectures.language_model(kind)
    more = torch.randn(32, generator=torch.Generator().manual_seed(1))
    scale = getattr(lm.model.config, "residual_multiplier", 1.0)
    for layer in lm.anatomy.layers("mlp_out"):
        place = lm.anatomy.place(Site("mlp_out", layer))
        plain, edited = blocks_output(lm, layer), blocks_output(lm, layer, place, more)
        torch.testing.assert_close(edited - plain, (scale * more).expand_as(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_mlp_out_of_bert_is_what_its_norm_is_given_beside_the_state(kind: str) -> None:
    lm = architectures.language_model(kind)
    block: Any = lm.anatomy.blocks[2]
    seen: dict[str, Tensor] = {}
    with (
        watched(lm.anatomy.place(Site("mlp_out", 2)), lambda h: seen.update(mlp=h.clone())),
        watched(Place(block.attention, "output"), lambda h: seen.update(state=h.clone())),
    ):
        out = blocks_output(lm, 2)
    torch.testing.assert_close(block.output.LayerNorm(seen["state"] + seen["mlp"]), out)


def test_mlp_out_of_gemma_4_is_not_its_input_per_layer() -> None:
    lm = architectures.language_model("gemma4_text")
    block: Any = lm.anatomy.blocks[1]
    assert lm.anatomy.place(Site("mlp_out", 1)) == (block.mlp, "output")
    assert lm.anatomy.place(Site("mlp_pre", 1)) == (block.mlp.gate_proj, "output")


@pytest.mark.parametrize("kind", ["gemma3n_text", pytest.param("deepseek_v4", marks=pytest.mark.slow)])
def test_a_residual_stream_of_several_copies_is_refused(kind: str) -> None:
    lm = architectures.language_model(kind)
    for name in ("resid_pre", "resid_post", "attn_out", "mlp_out"):
        with pytest.raises(SteerbenchError, match="has a residual stream of 4 copies of its 32 values"):
            lm.anatomy.place(Site(name, 1))
    steering = Steering(edits=(PlacedEdit(Site("z", 1), Add(torch.ones(width_of_z(lm, 1)), 2.0), "response"),))
    assert generate(lm, PROMPTS, steering, FEW) != generate(lm, PROMPTS, decoding=FEW)


def width_of_z(lm: LanguageModel, layer: int) -> int:
    seen: list[int] = []
    with watched(lm.anatomy.place(Site("z", layer)), lambda h: seen.append(h.shape[-1])):
        blocks_output(lm, layer)
    return seen[0]


ATTENTION = {"jamba": [1, 3], "lfm2": [1, 3], "granitemoehybrid": [1, 3], "nemotron_h": [1, 3]}
FEED_FORWARD = {"nemotron_h": [2]}


@pytest.mark.parametrize("kind", ATTENTION)
def test_a_hybrid_has_some_sites_in_some_blocks(kind: str) -> None:
    lm = architectures.language_model(kind)
    assert lm.anatomy.layers("z") == lm.anatomy.layers("attn_out") == ATTENTION[kind]
    assert lm.anatomy.layers("mlp_out") == FEED_FORWARD.get(kind, [0, 1, 2, 3])
    assert lm.anatomy.layers("resid_post") == [0, 1, 2, 3]


def fitted(lm: LanguageModel, method: str, **fields: Any) -> tuple[Steering, dict[str, Any]]:
    """Return what a method fits on a few pairs, and its report."""
    found = context(lm, tiny.examples()[:6], decoding=replace(FEW, temperature=1.0))
    return load("methods", method)(**fields).fit(found), found.report


@pytest.mark.parametrize("kind", ["nemotron_h", pytest.param("lfm2", marks=pytest.mark.slow)])
def test_methods_steer_the_blocks_of_a_hybrid_that_have_the_part(kind: str) -> None:
    lm = architectures.language_model(kind)
    heads, report = fitted(lm, "iti", n_heads=8, scope="all")
    assert [p.site.layer for p in heads.edits] == report["layers_with_z"] == [1, 3]
    removed, report = fitted(lm, "ablation")
    layers = {name: [p.site.layer for p in removed.edits if p.site.name == name] for name in ("resid_pre", "attn_out")}
    assert layers == {"resid_pre": [0, 1, 2, 3], "attn_out": report["layers_with_attn_out"]}
    for steering in (heads, removed):
        assert generate(lm, PROMPTS, steering, FEW) == [generate(lm, [p], steering, FEW)[0] for p in PROMPTS]


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_alignez_counts_layers_as_the_model_does(version: int) -> None:
    """The only feed-forward part of this model is its third block."""
    lm = architectures.language_model("nemotron_h")
    steering, report = fitted(lm, "alignez", version=version, n_queries=4, max_cosine=1.0)
    assert [p.site for p in steering.edits] == [Site("mlp_out", 2)]
    assert report["layers_with_mlp_out"] == [2]
    assert report["layers"] == [2] if version == 1 else [*report["pairs_and_directions"]] == ["2"]


def test_heads_have_the_width_of_their_layer() -> None:
    lm = architectures.language_model("gemma4_text")
    steering, report = fitted(lm, "iti", n_heads=16)
    assert [len(vector_of(p)) for p in steering.edits] == [32, 64, 32, 64]
    assert report["heads_of_model"] == 16
    assert "layers_with_z" not in report
    steering, report = fitted(lm, "iti", n_heads=1)
    ((layer, head, _),) = report["heads"]
    heads = vector_of(steering.edits[0]).reshape(4, -1)
    assert (steering.edits[0].site.layer, heads.norm(dim=1).nonzero().tolist()) == (layer, [[head]])


def vector_of(placed: PlacedEdit) -> Tensor:
    assert isinstance(placed.edit, Add)
    return placed.edit.vector


@pytest.mark.parametrize("kind", mostly_slow([*architectures.WITH_IMAGES], "llava_next".__eq__))
def test_the_text_part_of_a_vision_language_model_is_steered(kind: str, tmp_path: Path) -> None:
    built = architectures.language_model(kind)
    built.model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    lm = LanguageModel.load(str(tmp_path))
    assert lm.context_length == 256
    assert lm.n_layers == 4
    assert lm.anatomy.blocks is lm.model.get_decoder().layers
    for name in ("resid_post", "z"):
        edit = PlacedEdit(Site(name, 1), Add(torch.ones(32), 2.0), "response")
        steering = Steering(edits=(edit,))
        both = generate(lm, PROMPTS, steering, FEW)
        assert both == [generate(lm, [p], steering, FEW)[0] for p in PROMPTS]
        assert both != generate(lm, PROMPTS, decoding=FEW)


def test_xlstm_is_steered_though_it_keeps_states_and_no_columns(tmp_path: Path) -> None:
    architectures.language_model("xlstm").model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="takes one sequence at a time"):
        lm = LanguageModel.load(str(tmp_path))
    vector = torch.randn(64, generator=torch.Generator().manual_seed(1))
    for site in (Site("resid_post", 0), Site("mlp_out", 1)):
        steering = Steering(edits=(PlacedEdit(site, Add(vector, 3.0), "response"),))
        drawn = generate(lm, PROMPTS, steering, FEW)
        assert drawn == generate(lm, PROMPTS, steering, FEW, use_cache=False) != generate(lm, PROMPTS, decoding=FEW)
        rows = [Tokens(lm.tokens(p).prompt, reply.ids) for p, reply in zip(PROMPTS, drawn, strict=True)]
        for i, logits in response_logits(lm, rows, steering):
            assert tuple(logits.argmax(-1).tolist()) == drawn[i].ids
    with pytest.raises(SteerbenchError, match="could not find the attention of block 1"):
        lm.anatomy.place(Site("z", 1))


def test_the_context_of_mpt() -> None:
    lm = architectures.language_model("mpt")
    assert lm.context_length == 64
    with pytest.raises(SteerbenchError, match="do not fit the context of 64"):
        generate(lm, [user("x" * 70)], decoding=FEW)


def test_sites_are_found_beside_hooks_that_are_installed() -> None:
    lm = architectures.language_model("jamba")
    calls: list[int] = []
    handle = lm.model.register_forward_pre_hook(lambda m, a: calls.append(1))
    lm.anatomy.place(Site("z", 1))
    assert not calls
    assert [*lm.model._forward_pre_hooks] == [handle.id]
