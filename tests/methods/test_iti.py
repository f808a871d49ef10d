"""ITI: against the formula written out naively, by its equivalences, and what its fit tells."""

from typing import Any

import pytest
import torch
from fitted_iti import EXAMPLES, HEADS, context, iti, pairs_of, vectors
from sklearn.linear_model import LogisticRegression
from thorough import mostly_slow
from torch import Tensor

from steerbench import Decoding, Example, LanguageModel, SteerbenchError, Steering
from steerbench.contract import tiny
from steerbench.edits import Site
from steerbench.engine.logits import batch_logits
from steerbench.learn import Tokens, activations, response_logits
from steerbench.learn.pairs import pairs_from
from steerbench.learn.probes import hold_out

TOKENS = [Tokens((5, 6, 7), (8, 9, 10)), Tokens((30,), (11, 12)), Tokens((4, 5), (6,)), Tokens((9, 8, 7, 6), (5, 4, 3))]
ALIKE = [Tokens((5 + i, 6, 7), (8, 9)) for i in range(4)]
SHORT = Decoding(max_new_tokens=8, temperature=1.0)
"""The model's own replies fit the context."""


def fit(lm: LanguageModel, *args: Any, seed: int = 0, **fields: Any) -> Steering:
    return iti(**fields).fit(context(lm, *args, seed=seed))


def steered_heads(steering: Steering) -> set[tuple[int, int]]:
    return {(layer, int(h)) for layer, rows in vectors(steering).items() for h in rows.norm(dim=1).nonzero()}


def logits(lm: LanguageModel, steering: Steering | None = None, **settings: Any) -> list[Tensor]:
    found = dict(response_logits(lm, TOKENS, steering or Steering(), **settings))
    return [found[i] for i in range(len(TOKENS))]


# The formula

PROJECTIONS = {
    "llama": "model.layers.{}.self_attn.o_proj",
    "mistral": "model.layers.{}.self_attn.o_proj",
    "qwen2": "model.layers.{}.self_attn.o_proj",
    "qwen3": "model.layers.{}.self_attn.o_proj",
    "gemma2": "model.layers.{}.self_attn.o_proj",
    "phi3": "model.layers.{}.self_attn.o_proj",
    "falcon": "transformer.h.{}.self_attention.dense",
    "gpt2": "transformer.h.{}.attn.c_proj",
    "gpt_neo": "transformer.h.{}.attn.attention.out_proj",
    "gpt_neox": "gpt_neox.layers.{}.attention.dense",
    "opt": "model.decoder.layers.{}.self_attn.out_proj",
}


def naive_z(lm: LanguageModel, family: str, example: Example, reply: str) -> Tensor:
    """Return the heads' outputs at the last token of a reply, (layers, heads, d_head), read alone and unpadded."""
    ids = lm.tokenizer(lm.format.text(example.prompt) + " " + reply)["input_ids"]
    seen: list[Tensor] = []
    handles = [
        lm.model.get_submodule(PROJECTIONS[family].format(layer)).register_forward_hook(
            lambda module, args, output: seen.append(args[0].reshape(len(ids), HEADS, -1)[-1])
        )
        for layer in range(tiny.LAYERS)
    ]
    with torch.no_grad():
        lm.model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


def naive_iti(lm: LanguageModel, family: str, direction: str, n_heads: int, strength: float) -> dict[int, Tensor]:
    """Return layer -> what is added, (heads, d_head), one head after the other."""
    good = torch.stack([naive_z(lm, family, e, e.chosen) for e in EXAMPLES])
    bad = torch.stack([naive_z(lm, family, e, e.rejected) for e in EXAMPLES])
    held_out = hold_out(context(lm), pairs_of(lm, EXAMPLES)).tolist()
    train, rest = ([i for i, held in enumerate(held_out) if held is side] for side in (False, True))
    ranking, shifts = [], {}
    for layer in range(tiny.LAYERS):
        for head in range(HEADS):
            x, y = good[:, layer, head].double(), bad[:, layer, head].double()
            probe = LogisticRegression(max_iter=1000)
            probe.fit([*x[train].tolist(), *y[train].tolist()], [1] * len(train) + [0] * len(train))
            right = sum(probe.predict(x[rest].tolist())) + sum(1 - probe.predict(y[rest].tolist()))
            raw = x.mean(0) - y.mean(0) if direction == "mass_mean" else torch.tensor(probe.coef_[0])
            theta = raw / raw.norm()
            along = torch.stack([row @ theta for row in [*x, *y]])
            sigma = (along - along.mean()).square().mean().sqrt()
            ranking.append((-right, layer, head))
            shifts[layer, head] = strength * sigma * theta
    added: dict[int, Tensor] = {}
    for _, layer, head in sorted(ranking)[:n_heads]:
        added.setdefault(layer, torch.zeros(HEADS, good.shape[-1]))[head] = shifts[layer, head]
    return added


@pytest.mark.parametrize("direction", ["mass_mean", "probe"])
@pytest.mark.parametrize("on", mostly_slow(["llama", "gpt2", "falcon", "qwen3"], ("gpt2", "falcon").__contains__))
def test_is_the_formula_written_out(on: str, direction: str) -> None:
    lm = tiny.language_model(on)
    expected = naive_iti(lm, on, direction, n_heads=5, strength=2.5)
    found = vectors(fit(lm, n_heads=5, alpha=2.5, direction=direction))
    assert set(found) == set(expected)
    for layer, vector in expected.items():
        torch.testing.assert_close(found[layer], vector, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("source", "pool"),
    [("preferences", "response_mean"), ("self_generated", "last_response"), ("personas", "last_prompt")],
)
def test_reads_the_pairs_and_the_pool_it_is_told(llama: LanguageModel, source: Any, pool: Any) -> None:
    shared = context(llama, decoding=SHORT)
    found = vectors(iti(pairs=source, pool=pool, n_heads=12).fit(shared))
    pairs = pairs_from(shared, source)
    assert len(found) == tiny.LAYERS
    for layer, rows in found.items():
        good, bad = (
            torch.stack(activations(llama, Site("z", layer), side, pool)).mean(0)
            for side in ([p.chosen for p in pairs], [p.rejected for p in pairs])
        )
        cosine = torch.cosine_similarity(rows, (good - bad).reshape(HEADS, -1), dim=1)
        torch.testing.assert_close(cosine, torch.ones(HEADS))


def test_swapped_pairs_point_the_other_way(llama: LanguageModel) -> None:
    swapped = [Example(e.id, e.group, e.prompt, e.rejected, e.chosen) for e in EXAMPLES]
    there, back = vectors(fit(llama, n_heads=12)), vectors(fit(llama, swapped, n_heads=12))
    for layer, rows in there.items():
        assert rows.norm() > 0
        torch.testing.assert_close(back[layer], -rows)


def test_heads_are_query_heads(lm: LanguageModel) -> None:
    config = lm.model.config
    shared = context(lm, EXAMPLES[:8])
    steering = iti().fit(shared)
    assert shared.report["heads_of_model"] == config.num_hidden_layers * HEADS
    for rows in vectors(steering).values():
        assert rows.shape[1] == (getattr(config, "head_dim", None) or config.hidden_size // HEADS)
    grouped = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"}
    assert (getattr(config, "num_key_value_heads", HEADS) < HEADS) == (config.model_type in grouped)


@pytest.mark.parametrize("n_heads", [1, 5, 12, 13, 1000])
def test_as_many_heads_as_asked_for_and_there(llama: LanguageModel, n_heads: int) -> None:
    shared = context(llama)
    steering = iti(n_heads=n_heads).fit(shared)
    chosen = shared.report["heads"]
    assert len(chosen) == min(n_heads, 12)
    assert steered_heads(steering) == {(layer, head) for layer, head, _ in chosen}
    assert [p.site.layer for p in steering.edits] == sorted({layer for layer, _, _ in chosen})
    assert chosen == sorted(chosen, key=lambda h: (-h[2], h[0], h[1]))


@pytest.mark.parametrize(("share", "count"), [(0.046875, 1), (0.25, 3), (0.3, 4), (0.99, 12)])
def test_a_fraction_is_a_share_of_the_heads_there_are(llama: LanguageModel, share: float, count: int) -> None:
    """12 there are; the default is the published 48 of 1,024."""
    assert len(steered_heads(fit(llama, n_heads=share))) == count
    assert iti() == iti(n_heads=48 / 1024)


# Steering


def test_all_positions_are_a_bias_of_the_output_projection(lm: LanguageModel, family: str) -> None:
    steering = fit(lm, n_heads=5, alpha=1.5, scope="all")
    steered, base = logits(lm, steering), logits(lm)
    for layer, rows in vectors(steering).items():
        projection: Any = lm.model.get_submodule(PROJECTIONS[family].format(layer))
        vector = rows.reshape(1, 1, -1)
        bias = (projection(vector) - projection(torch.zeros_like(vector)))[0, 0]
        projection.bias = torch.nn.Parameter(bias if projection.bias is None else bias + projection.bias)
    for a, b, c in zip(steered, logits(lm), base, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(a, c, rtol=1e-2, atol=1e-2)


def test_every_row_of_a_batch_is_steered(lm: LanguageModel) -> None:
    steering = fit(lm, n_heads=5, alpha=1.5)
    alone, together = (logits(lm, steering, batch_size=size) for size in (1, 4))
    for a, b, c in zip(alone, together, logits(lm), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(a, c, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("scope", "first"), [("response", 2), ("all", 0)])
def test_the_shift_is_added_at_each_position_of_the_scope(llama: LanguageModel, scope: str, first: int) -> None:
    """Three prompt tokens and two of the response: the response's scope begins at the last of the prompt."""
    steering = fit(llama, n_heads=5, alpha=3.0, scope=scope)
    seen: dict[int | None, Tensor] = {}
    list(batch_logits(llama, ALIKE, steering, lambda site, h, new: seen.update({site.layer: new - h})))
    assert set(seen) == set(vectors(steering))
    for layer, rows in vectors(steering).items():
        expected = torch.zeros(4, 5, 32)
        expected[:, first:] = rows.flatten()
        torch.testing.assert_close(seen[layer], expected, rtol=1e-4, atol=1e-4)


def test_strength_is_in_standard_deviations(llama: LanguageModel) -> None:
    once, thrice = (vectors(fit(llama, n_heads=12, alpha=strength)) for strength in (1.0, 3.0))
    pairs = pairs_of(llama, EXAMPLES)
    texts = [t for pair in pairs for t in pair]
    for layer, rows in once.items():
        torch.testing.assert_close(thrice[layer], 3 * rows)
        states = torch.stack(activations(llama, Site("z", layer), texts, "last_response")).reshape(
            len(texts), HEADS, -1
        )
        for head, row in enumerate(rows):
            along = states[:, head] @ row / row.norm()
            torch.testing.assert_close(row.norm(), along.std(correction=0), rtol=1e-3, atol=1e-4)


# The fit


def test_the_report_says_what_was_found(llama: LanguageModel) -> None:
    shared = context(llama)
    iti(n_heads=2).fit(shared)
    heads = shared.report.pop("heads")
    assert [list(map(type, h)) for h in heads] == [[int, int, float]] * 2
    assert shared.report == {
        "alpha": 15.0,
        "heads_of_model": 12,
        "pairs": {"train": 13, "validation": 3},
        "sigma_from": "last_response of both sides of all pairs (preferences)",
        "probes_not_converged": 0,
    }


def test_the_relative_norm_is_the_mean_share_of_the_length_of_z(llama: LanguageModel) -> None:
    shared = context(llama)
    found = vectors(iti(n_heads=5, relative_norm=0.3).fit(shared))
    shares = []
    for layer, rows in found.items():
        both = [side for pair in shared.pairs() for side in pair]
        lengths = [z.norm() for z in shared.activations(Site("z", layer), both, "last_response")]
        shares.append(float(rows.norm() / torch.stack(lengths).mean()))
    assert sum(shares) / len(shares) == pytest.approx(0.3, rel=1e-4)
    plain = vectors(iti(n_heads=5, alpha=shared.report["alpha"]).fit(context(llama)))
    for layer, rows in found.items():
        torch.testing.assert_close(rows, plain[layer])


def test_equal_seeds_give_equal_bytes(llama: LanguageModel) -> None:
    torch.manual_seed(5)
    first = fit(llama, seed=1, n_heads=4).digest()
    torch.manual_seed(6)
    assert fit(llama, seed=1, n_heads=4).digest() == first
    assert len({fit(llama, seed=seed, n_heads=4).digest() for seed in range(5)}) > 1


def test_trials_share_the_probes(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = context(llama)
    first = iti(n_heads=3).fit(shared)
    before, shared.report = shared.report, {}
    calls: list[int] = []
    llama.model.register_forward_pre_hook(lambda m, a: calls.append(1))
    monkeypatch.setattr("steerbench.learn.probes.LogisticRegression", None)
    again = iti(n_heads=3, alpha=30.0).fit(shared)
    assert calls == []
    assert shared.report == {**before, "alpha": 30.0}
    for layer, rows in vectors(first).items():
        torch.testing.assert_close(vectors(again)[layer], 2 * rows)


def test_other_hyperparameters_share_nothing_wrong(llama: LanguageModel) -> None:
    """What one variant leaves in the run must not become another's."""
    variants: list[dict[str, Any]] = [
        {},
        {"direction": "probe"},
        {"pool": "response_mean"},
        {"pairs": "self_generated"},
        {"pairs": "personas", "pool": "last_prompt"},
        {"n_heads": 2},
    ]
    contexts = [context(llama, decoding=SHORT) for _ in variants]
    alone = [iti(**fields).fit(one).digest() for fields, one in zip(variants, contexts, strict=True)]
    joint = context(llama, decoding=SHORT)
    assert [iti(**fields).fit(joint).digest() for fields in variants] == alone
    assert len(set(alone)) == len(variants)


def test_the_models_own_replies_are_reported_in_every_trial(llama: LanguageModel) -> None:
    shared = context(llama, decoding=SHORT)
    for strength in (1.0, 2.0):
        shared.report = {}
        iti(pairs="self_generated", alpha=strength).fit(shared)
        assert shared.report["self_generated"]["kept"] == sum(shared.report["pairs"].values()) > 4


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pairs": "personas"}, r"no reply for pool='last_response'; set pool=last_prompt"),
        ({"pairs": "personas", "pool": "response_mean"}, r"no reply for pool='response_mean'; set pool=last_prompt"),
        ({"pool": "last_prompt"}, r"pairs='preferences' are the same; set pool=last_response, or pairs=personas"),
        ({"n_heads": 0}, r"n_heads must be .* of 1 or more, or .* above 0 and below 1, not 0\."),
        ({"n_heads": -3}, r"n_heads must be .*, not -3\."),
        ({"n_heads": 1.0}, r"n_heads must be .*, not 1\.0"),
        ({"n_heads": -0.1}, r"n_heads must be .*, not -0\.1"),
        ({"pairs": "persona"}, r"Did you mean 'personas'"),
        ({"scope": "responses"}, r"Did you mean 'response'"),
    ],
)
def test_mistakes_are_named(llama: LanguageModel, fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(SteerbenchError, match=expected):
        fit(llama, **fields)


def test_without_pairs_the_user_is_told(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match="use more training examples"):
        fit(llama, [])


def test_heads_that_do_not_divide_the_width(llama: LanguageModel) -> None:
    llama.model.config.num_attention_heads = 5
    with pytest.raises(SteerbenchError, match="5 heads do not divide the width 32 of z in tiny-llama"):
        fit(llama)
