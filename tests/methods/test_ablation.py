"""Ablation against weights that cannot write the direction, and against the formula written out naively."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steerbench import Example, FitContext, LanguageModel, SteerbenchError, Steering, load
from steerbench.contract import tiny
from steerbench.data import plain_text
from steerbench.edits import Ablate, Site
from steerbench.engine.logits import batch_logits
from steerbench.learn import Tokens, response_logits

EXAMPLES = tiny.examples()[:6]
TOKENS = [Tokens((5, 6, 7), (8, 9)), Tokens((10,), (11, 12, 13)), Tokens((40, 41, 42, 43), (44,))]
WRITES = ("resid_pre", "attn_out", "mlp_out")
SOURCE = 1
"""The default layer of a model with three."""


def context(lm: LanguageModel, examples: list[Example] | None = None) -> FitContext:
    return FitContext(lm=lm, examples=EXAMPLES if examples is None else examples, reward=tiny.VowelReward())


def fit(lm: LanguageModel, *args: Any, **fields: Any) -> Steering:
    return load("methods", "ablation")(**fields).fit(context(lm, *args))


def logits(lm: LanguageModel, steering: Steering | None = None) -> list[Tensor]:
    found = dict(response_logits(lm, TOKENS, steering or Steering()))
    return [found[i] for i in range(len(TOKENS))]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(first, second, strict=True))


def naive_means(lm: LanguageModel, layer: int = SOURCE) -> tuple[Tensor, Tensor]:
    """Return the mean state of the preferred and of the other replies, averaged over the tokens of each, (width,)."""
    means = []
    for side in ([e.chosen for e in EXAMPLES], [e.rejected for e in EXAMPLES]):
        total: Tensor = torch.zeros(lm.model.config.hidden_size)
        for example, reply in zip(EXAMPLES, side, strict=True):
            prompt = lm.tokenizer(plain_text(example.prompt))["input_ids"]
            whole = lm.tokenizer(plain_text(example.prompt) + " " + reply)["input_ids"]
            with torch.no_grad():
                hidden = lm.model(torch.tensor([whole]), output_hidden_states=True).hidden_states[layer + 1][0]
            total += hidden[len(prompt) :].mean(0) / len(EXAMPLES)
        means.append(total)
    return means[0], means[1]


def naive_direction(lm: LanguageModel) -> Tensor:
    preferred, other = naive_means(lm)
    return torch.nn.functional.normalize(other - preferred, dim=0)


Seen = dict[str, list[tuple[Tensor, Tensor]]]


def observed(lm: LanguageModel, steering: Steering) -> Seen:
    """Return for each site that is edited what was there before and after, (positions, width) for each row."""
    seen: Seen = {}

    def note(site: Site, before: Tensor, after: Tensor) -> None:
        seen.setdefault(str(site), []).append((before[0].clone(), after[0].clone()))  # Falcon adds in place

    for tokens in TOKENS:
        list(batch_logits(lm, [tokens], steering, note))
    return seen


def block_states(lm: LanguageModel, steering: Steering) -> list[Tensor]:
    """Return what each block of the steered model puts out, (positions, width) for each block and row."""
    seen: list[Tensor] = []
    list(response_logits(lm, TOKENS, steering))  # finds the sites, for which the model runs once
    handles = [
        block.register_forward_hook(lambda m, a, o: seen.append((o if isinstance(o, Tensor) else o[0])[0].clone()))
        for block in lm.anatomy.blocks
    ]
    for tokens in TOKENS:
        list(response_logits(lm, [tokens], steering))
    for handle in handles:
        handle.remove()
    return seen


# The direction


@pytest.mark.parametrize("form", ["directional", "affine"])
def test_direction_leads_to_the_other_replies(lm: LanguageModel, form: str) -> None:
    steering, expected = fit(lm, form=form), naive_direction(lm)
    for placed in steering.edits:
        assert isinstance(placed.edit, Ablate)
        torch.testing.assert_close(placed.edit.direction, expected, rtol=1e-3, atol=1e-4)
    affine, directional = [f"resid_post.{SOURCE}"], [f"{name}.{layer}" for layer in range(3) for name in WRITES]
    assert [str(p.site) for p in steering.edits] == (affine if form == "affine" else directional)


def test_pool_and_layer_are_those_asked_for(llama: LanguageModel) -> None:
    steering = fit(llama, form="affine", pool="last_response", layer=2)
    caa = load("methods", "caa")(pool="last_response", layer=2).fit(context(llama))  # type: ignore[call-arg]
    (placed,), (added,) = steering.edits, caa.edits
    assert placed.site == added.site == Site("resid_post", 2)
    cosine = torch.cosine_similarity(placed.edit.direction, added.edit.vector, dim=0)  # type: ignore[arg-type]
    assert float(cosine) == pytest.approx(-1)


def test_swapped_pairs_turn_the_direction_but_not_what_directional_ablation_does(llama: LanguageModel) -> None:
    swapped = [Example(e.id, e.group, e.prompt, e.rejected, e.chosen) for e in EXAMPLES]
    (there,), (back,) = fit(llama, form="affine").edits, fit(llama, swapped, form="affine").edits
    torch.testing.assert_close(there.edit.direction, -back.edit.direction)  # type: ignore[operator]
    assert same(logits(llama, fit(llama)), logits(llama, fit(llama, swapped)))
    assert not same(logits(llama, fit(llama, form="affine")), logits(llama, fit(llama, swapped, form="affine")))


# Directional


@pytest.mark.parametrize("scope", ["all", "prompt", "response"])
def test_nothing_that_is_written_has_the_component(lm: LanguageModel, scope: str) -> None:
    r = naive_direction(lm)
    seen = observed(lm, fit(lm, scope=scope))
    assert set(seen) == {f"{name}.{layer}" for layer in range(3) for name in WRITES}
    for site, rows in seen.items():
        for tokens, (before, after) in zip(TOKENS, rows, strict=True):
            n, length = len(tokens.prompt), sum(map(len, tokens))
            touched = {"all": range(length), "prompt": range(n), "response": range(n - 1, length)}[scope]
            rest = [i for i in range(length) if i not in touched]
            assert float((after[touched] @ r).abs().max()) < 1e-3
            assert torch.equal(before[rest], after[rest])
        if "out" in site:
            assert max(float((before @ r).abs().max()) for before, _ in rows) > 0.1


@pytest.mark.parametrize("on", sorted(set(tiny.FAMILIES) - {"gemma2"}))
def test_no_block_puts_the_component_out(on: str) -> None:
    lm = tiny.language_model(on)
    r = naive_direction(lm)
    assert max(float((h @ r).abs().max()) for h in block_states(lm, Steering())) > 1
    assert max(float((h @ r).abs().max()) for h in block_states(lm, fit(lm))) < 1e-3


def test_norms_behind_both_parts_write_it_again() -> None:
    lm = tiny.language_model("gemma2")
    r = naive_direction(lm)
    for parameter in (p for name, p in lm.model.named_parameters() if "post_" in name):
        parameter.data = torch.linspace(-0.5, 1, 32)  # the tiny model's own norms scale nothing
    assert max(float((h @ r).abs().max()) for h in block_states(lm, fit(lm))) > 0.1


LLAMA_LIKE = ("model.embed_tokens", "model.layers.{}", "self_attn.o_proj", "mlp.down_proj")
WRITERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3", "phi3"], LLAMA_LIKE),
    "gpt2": ("transformer.wte", "transformer.wpe", "transformer.h.{}", "attn.c_proj", "mlp.c_proj"),
    "gpt_neo": (
        "transformer.wte",
        "transformer.wpe",
        "transformer.h.{}",
        "attn.attention.out_proj",
        "mlp.c_proj",
    ),
    "opt": (
        "model.decoder.embed_tokens",
        "model.decoder.embed_positions",
        "model.decoder.layers.{}",
        "self_attn.out_proj",
        "fc2",
    ),
    "gpt_neox": ("gpt_neox.embed_in", "gpt_neox.layers.{}", "attention.dense", "mlp.dense_4h_to_h"),
    "falcon": ("transformer.word_embeddings", "transformer.h.{}", "self_attention.dense", "mlp.dense_4h_to_h"),
}
"""Family -> embeddings, block, and the two maps of a block that write to the residual stream."""


def orthogonalised(lm: LanguageModel, family: str, r: Tensor) -> LanguageModel:
    """Return a copy of the model whose writing weights and biases have no component along r."""
    model = copy.deepcopy(lm.model)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())  # may be tied, and reads what is written
    *embeddings, block, attention, feed_forward = WRITERS[family]
    inside = [f"{block.format(layer)}.{part}" for layer in range(3) for part in (attention, feed_forward)]
    without = torch.eye(len(r)) - torch.outer(r, r)
    for name in [*embeddings, *inside]:
        module: Any = model.get_submodule(name)
        columns = isinstance(module, nn.Linear)  # (outputs, inputs); an embedding and GPT-2's maps end in the width
        weight = without @ module.weight if columns else module.weight @ without
        module.weight = nn.Parameter(weight, requires_grad=False)
        if getattr(module, "bias", None) is not None:
            module.bias = nn.Parameter(without @ module.bias, requires_grad=False)
    return LanguageModel(model, lm.tokenizer)


@pytest.mark.parametrize("family", WRITERS)
def test_directional_ablation_is_orthogonalisation_of_the_weights(family: str) -> None:
    """In every family but Gemma 2: there a norm scales what a map puts out, one number for each dimension, before it is
    added, so that a map that is orthogonal to r does not make an addition that is.
    """
    lm = tiny.language_model(family)
    ablated = logits(lm, fit(lm))
    assert same(ablated, logits(orthogonalised(lm, family, naive_direction(lm))))
    assert not same(ablated, logits(lm))


def test_all_writers_are_named() -> None:
    assert set(WRITERS) == set(tiny.FAMILIES) - {"gemma2"}


def test_ablating_twice_is_ablating_once(lm: LanguageModel) -> None:
    once = fit(lm)
    assert same(logits(lm, once + once), logits(lm, once))


def test_two_halves_leave_a_quarter(llama: LanguageModel) -> None:
    """Strength is the share of the component that goes: 2 turns it, and 1/2 twice leaves 1/4, as 3/4 does."""
    half = fit(llama, strength=0.5)
    assert same(logits(llama, half + half), logits(llama, fit(llama, strength=0.75)))
    assert not same(logits(llama, half), logits(llama, fit(llama)))


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_strength_is_the_share_that_is_removed(lm: LanguageModel, strength: float) -> None:
    r = naive_direction(lm)
    for rows in observed(lm, fit(lm, strength=strength)).values():
        for before, after in rows:
            torch.testing.assert_close(after @ r, (1 - strength) * (before @ r), rtol=1e-3, atol=1e-3)
            beside = torch.eye(len(r)) - torch.outer(r, r)
            torch.testing.assert_close(after @ beside, before @ beside, rtol=1e-3, atol=1e-3)


# Affine


def seen_by_the_next_block(lm: LanguageModel, steering: Steering) -> list[Tensor]:
    """Return what the block behind the source receives, (positions, width) for each row."""
    seen: list[Tensor] = []
    handle = lm.anatomy.blocks[SOURCE + 1].register_forward_pre_hook(lambda m, a: seen.append(a[0][0].clone()))
    for tokens in TOKENS:
        list(response_logits(lm, [tokens], steering))
    handle.remove()
    return seen


@pytest.mark.parametrize(("push", "strength"), [(0.0, 1.0), (0.5, 1.0), (-1.0, 0.5)])
def test_affine_ablation_moves_the_component_to_that_of_the_preferred_states(
    lm: LanguageModel, push: float, strength: float
) -> None:
    """And `push` on from there, away from the other states, in units of the distance between the means."""
    preferred, other = naive_means(lm)
    apart = other - preferred
    r = apart / apart.norm()
    beside = torch.eye(len(r)) - torch.outer(r, r)
    target = float((preferred - push * apart) @ r)
    steered = seen_by_the_next_block(lm, fit(lm, form="affine", push=push, strength=strength))
    for before, after in zip(seen_by_the_next_block(lm, Steering()), steered, strict=True):
        expected = strength * target + (1 - strength) * (before @ r)
        torch.testing.assert_close(after @ r, expected, rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(after @ beside, before @ beside, rtol=1e-3, atol=2e-3)


def test_a_push_of_minus_one_is_where_the_other_states_are(llama: LanguageModel) -> None:
    preferred, other = naive_means(llama)
    r = naive_direction(llama)
    for push, mean in ((0.0, preferred), (-1.0, other)):
        (placed,) = fit(llama, form="affine", push=push).edits
        assert isinstance(placed.edit, Ablate)
        assert placed.edit.target == pytest.approx(float(mean @ r), rel=1e-3)


# Mistakes


def test_without_pairs_the_user_is_told(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match="use more training examples"):
        fit(llama, [])


def test_prompts_that_are_the_same_have_no_direction(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match="both sides of pairs='preferences' are the same; set pool=last_response"):
        fit(llama, pool="last_prompt")


def test_layer_outside_the_model(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match=r"layer=3 is outside 0\.\.2"):
        fit(llama, layer=3)
