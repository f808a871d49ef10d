"""LoFiT: its two steps against formulas written out naively, a bias in its place, and what was planted."""

import sys
from typing import Any

import pytest
import torch
from planted_pairs import Given, planted, reply_log_prob, trial_of
from thorough import mostly_slow
from torch import Tensor

from steerbench import LanguageModel, SteerbenchError, Steering, load
from steerbench.contract import tiny
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.learn import Pair, Tokens, imitation, log_probs

LoFiT: Any = load("methods", "lofit")
lofit: Any = sys.modules[LoFiT.__module__]
REPLY = Tokens((5, 6, 7), (8, 9, 10, 11))
D_HEAD = tiny.WIDTH // tiny.HEADS
SITE = Site("z", 1)


def by_hook(lm: LanguageModel, change: Any) -> Tensor:
    """Return the log-probability of the reply where the input of the projection of layer 1 is changed."""
    handle = lm.model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda m, a: (change(a[0]),))
    found = reply_log_prob(lm, REPLY)
    handle.remove()
    return found


def trained_log_prob(lm: LanguageModel, edit: Any) -> Tensor:
    pair = Pair(REPLY, REPLY)
    return -imitation([pair], trial_of(lm, [PlacedEdit(SITE, edit, "all")], [pair]))[0] * len(REPLY.response)


def test_the_scaling_is_one_plus_a(llama: LanguageModel) -> None:
    a = torch.linspace(-1, 1, tiny.WIDTH)
    found = trained_log_prob(llama, lofit.Scale(a))
    torch.testing.assert_close(found, by_hook(llama, lambda z: (1 + a) * z), rtol=1e-4, atol=1e-4)
    assert float(found) != pytest.approx(float(reply_log_prob(llama, REPLY)), abs=1e-2)


def test_the_bias_stands_at_its_heads(llama: LanguageModel) -> None:
    values = torch.linspace(-2, 2, 2 * D_HEAD).reshape(2, D_HEAD)
    edit = lofit.HeadBias(values, [0, 3], tiny.HEADS)
    wide = torch.cat([values[0], torch.zeros(2 * D_HEAD), values[1]])
    torch.testing.assert_close(edit.constant(), wide)
    torch.testing.assert_close(trained_log_prob(llama, edit), by_hook(llama, lambda z: z + wide), rtol=1e-4, atol=1e-4)


def test_what_is_fitted_equals_a_bias_of_the_projection() -> None:
    context = planted(0, pairs=10).context
    steering = LoFiT(n_heads=3, epochs=1).fit(context)
    found = log_probs(context.lm, [REPLY], steering)[0].sum()
    for placed in steering.edits:
        assert isinstance(placed.edit, Add)
        projection = context.lm.model.model.layers[placed.site.layer].self_attn.o_proj
        projection.bias = torch.nn.Parameter(projection.weight @ placed.edit.vector)
    torch.testing.assert_close(found, reply_log_prob(context.lm, REPLY), rtol=1e-4, atol=1e-4)
    assert float(found) != pytest.approx(float(log_probs(planted(0).context.lm, [REPLY])[0].sum()), abs=1e-2)


@pytest.mark.parametrize("seed", mostly_slow(range(5), lambda seed: seed == 0))
def test_it_finds_the_planted_head_and_its_direction(seed: int) -> None:
    """Of twelve heads, one writes what the LM head reads. Few steps of Adam scale all heads alike: here are many."""
    there = planted(seed, head=2)
    steering = LoFiT(n_heads=1, scaling_epochs=5, scaling_lr=0.05, l1=0.01).fit(there.context)
    assert there.context.report["heads"] == [[2, 2]]
    (placed,) = steering.edits
    assert isinstance(placed.edit, Add)
    heads = placed.edit.vector.reshape(tiny.HEADS, D_HEAD)
    assert float(torch.cosine_similarity(heads[2], there.of_head, dim=0)) >= 0.9
    assert not heads[[0, 1, 3]].any()
    assert placed.scope == "all"


def test_a_length_of_its_own_is_shared_by_the_layers() -> None:
    context: Given = planted(0, pairs=10).context
    plain, scaled = (LoFiT(n_heads=4, epochs=1, relative_norm=r).fit(context) for r in (None, 0.3))
    ratios = {
        float((b.edit.constant() / a.edit.constant()).nanmean()) for a, b in zip(plain.edits, scaled.edits, strict=True)
    }
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-4) == pytest.approx(context.report["scale"], rel=1e-4)


def test_the_sparsity_has_its_price(llama: LanguageModel) -> None:
    factors = [torch.ones(3), -torch.ones(2)]
    pair = Pair(REPLY, REPLY._replace(response=(20, 21)))
    trial = trial_of(llama, [], [pair])
    plain, sparse = (LoFiT(loss="sft", l1=x)._sparse(factors)([pair], trial) for x in (0.0, 0.1))
    torch.testing.assert_close(sparse - plain, torch.tensor([0.5]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [0, -1, 1.0, 0.0])
def test_a_number_of_heads_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(SteerbenchError, match=f"n_heads must be .*, not {wrong}"):
        LoFiT(n_heads=wrong).fit(planted(0, pairs=2).context)


def test_off_is_the_empty_shift(llama: LanguageModel) -> None:
    context = planted(0, pairs=4).context
    off = LoFiT(epochs=1, strength=0.0).fit(context)
    assert torch.equal(log_probs(context.lm, [REPLY], off)[0], log_probs(context.lm, [REPLY], Steering())[0])
