"""Gates: an open one is its edit, a closed one the unsteered model, and each row has its own, in every kind of pass."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from steerbench import Decoding, LanguageModel, SteerbenchError, Steering, generate, steered
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Ablate, Add, ConditionGate, Edit, Gated, PlacedEdit, Site
from steerbench.learn import Tokens, activations, response_logits

PROMPTS = [user(text) for text in ("Hi", "How do I bake a cake?", "Why?", "Tell me more.")]
TOKENS = [Tokens((5, 6, 7), (8, 9)), Tokens((10,), (11, 12, 13)), Tokens((30, 31, 32, 33), (14,))]
GREEDY = Decoding(max_new_tokens=6)
HERE, ELSEWHERE = Site("resid_post", 1), Site("resid_post", 2)


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return tiny.language_model("llama")


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def edits() -> list[Edit]:
    axes = torch.linalg.qr(draw(tiny.WIDTH, 2)).Q.T.contiguous()
    return [Add(draw(tiny.WIDTH)), Ablate(draw(tiny.WIDTH)), Gated(axes, filtered=False)]


def behind(edit: Edit, threshold: float, site: Site = ELSEWHERE, scope: str = "response") -> Steering:
    gate = ConditionGate(str(site), draw(2, tiny.WIDTH)[1], threshold, "cosine", pool="last_prompt")
    return Steering(edits=(PlacedEdit(HERE, edit, scope, gate),))  # type: ignore[arg-type]


def logits(lm: LanguageModel, steering: Steering) -> list[Tensor]:
    return [rows for _, rows in sorted(response_logits(lm, TOKENS, steering))]


def measured(lm: LanguageModel, site: Site = ELSEWHERE) -> Tensor:
    """Return the cosine of the last state of each prompt with the direction, by the prompt alone."""
    states = torch.stack([activations(lm, site, [Tokens(t.prompt)], "last_prompt")[0] for t in TOKENS])
    return normalize(states, dim=1) @ normalize(draw(2, tiny.WIDTH)[1], dim=0)


@pytest.mark.parametrize("scope", ["all", "prompt", "response"])
@pytest.mark.parametrize("edit", edits(), ids=lambda edit: type(edit).__name__)
def test_an_open_gate_is_its_edit_and_a_closed_one_nothing(llama: LanguageModel, edit: Edit, scope: str) -> None:
    plain = Steering(edits=(PlacedEdit(HERE, edit, scope),))  # type: ignore[arg-type]
    assert all(map(torch.equal, logits(llama, behind(edit, -2.0, scope=scope)), logits(llama, plain)))
    assert all(map(torch.equal, logits(llama, behind(edit, 2.0, scope=scope)), logits(llama, Steering())))
    assert generate(llama, PROMPTS, behind(edit, -2.0, scope=scope), GREEDY) == generate(llama, PROMPTS, plain, GREEDY)


@pytest.mark.parametrize("site", [HERE, ELSEWHERE, Site("resid_pre", 0)], ids=str)
def test_each_row_of_a_batch_has_its_own_gate(llama: LanguageModel, site: Site) -> None:
    edit, cosines = Add(3 * draw(tiny.WIDTH)), measured(llama, site)
    threshold = float(cosines.sort().values[:2].mean())  # the lowest row is closed, the others are open
    found = logits(llama, behind(edit, threshold, site))
    opened, closed = logits(llama, behind(edit, -2.0)), logits(llama, Steering())
    for row, cosine in enumerate(cosines):
        torch.testing.assert_close(found[row], (opened if cosine > threshold else closed)[row], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(opened[0], closed[0], atol=1e-2)


def test_a_decision_holds_through_decoding_in_a_batch_and_alone(llama: LanguageModel) -> None:
    seen = [llama.tokens(p) for p in PROMPTS]
    states = torch.stack(activations(llama, ELSEWHERE, seen, "last_prompt"))
    cosines = normalize(states, dim=1) @ normalize(draw(2, tiny.WIDTH)[1], dim=0)
    steering = behind(Add(5 * draw(tiny.WIDTH)), float(cosines.median()) + 1e-6)
    expected = [
        generate(llama, p, behind(Add(5 * draw(tiny.WIDTH)), -2.0) if c > cosines.median() else Steering(), GREEDY)[0]
        for p, c in zip(PROMPTS, cosines, strict=True)
    ]
    assert generate(llama, PROMPTS, steering, GREEDY) == expected
    assert [generate(llama, p, steering, GREEDY)[0] for p in PROMPTS] == expected
    assert generate(llama, PROMPTS, steering, GREEDY, use_cache=False) == expected
    batch = llama.left_padded(seen)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with steered(llama, steering):
        ids = llama.model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, batch.input_ids.shape[1] :]
    assert [llama.cut(row).ids for row in ids.tolist()] == [response.ids for response in expected]


def test_the_measures_are_the_formulas() -> None:
    h, c = draw(5, tiny.WIDTH), draw(6, tiny.WIDTH)[5]
    unit = c / c.norm()
    for measure in ("tanh", "cosine", "component"):
        gate = ConditionGate("final", c, 0.0, measure)
        for row, found in zip(h, gate.measured(h), strict=True):
            projected = torch.outer(c, c) @ row / (c @ c)
            target = {"tanh": torch.tanh(projected), "cosine": c, "component": None}[measure]
            expected = row @ unit if target is None else row @ target / (row.norm() * target.norm())
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    above, below = (ConditionGate("final", c, 0.1, "cosine", side).opens(h) for side in (True, False))
    assert torch.equal(above, ~below)
    assert 0 < int(above.sum()) < 5


def test_the_mean_of_a_prompt_leaves_padding_out(llama: LanguageModel) -> None:
    means = torch.stack(
        [rows.mean(0) for rows in activations(llama, ELSEWHERE, [Tokens(t.prompt) for t in TOKENS], "all")]
    )
    axis = means[0] - means[1:].mean(0)
    threshold = float((means @ normalize(axis, dim=0)).sort().values[1:].mean())
    gate = ConditionGate(str(ELSEWHERE), axis, threshold, "component")
    steering = Steering(edits=(PlacedEdit(HERE, Add(3 * draw(tiny.WIDTH)), "response", gate),))
    opened = means @ normalize(axis, dim=0) > threshold
    changed = [not torch.equal(a, b) for a, b in zip(logits(llama, steering), logits(llama, Steering()), strict=True)]
    assert changed == opened.tolist()
    assert 0 < sum(changed) < 3


def test_a_gate_is_saved_and_an_edit_without_one_as_before(llama: LanguageModel, tmp_path: Path) -> None:
    steering = behind(Add(draw(tiny.WIDTH)), 0.05)
    steering.save(tmp_path)
    again = Steering.load(tmp_path)
    assert again.digest() == steering.digest() != behind(Add(draw(tiny.WIDTH)), 0.06).digest()
    assert generate(llama, PROMPTS, again, GREEDY) == generate(llama, PROMPTS, steering, GREEDY)
    Steering(edits=(PlacedEdit(HERE, Add(draw(tiny.WIDTH))),)).save(tmp_path)
    assert "gate" not in (tmp_path / Steering.JSON).read_text()


def test_nothing_is_folded_beside_a_gate(llama: LanguageModel) -> None:
    gate = ConditionGate("resid_post.2", draw(tiny.WIDTH), 2.0, "cosine")
    steering = Steering(edits=(PlacedEdit(Site("attn_out", 0), Add(9 * draw(tiny.WIDTH)), "all", gate),))
    assert generate(llama, PROMPTS, steering, GREEDY) == generate(llama, PROMPTS, decoding=GREEDY)


def test_a_gate_at_no_site_of_the_model_is_refused(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match="layer"):
        generate(llama, PROMPTS, behind(Add(draw(tiny.WIDTH)), 0.0, Site("resid_post", 40)), GREEDY)
    with pytest.raises(SteerbenchError, match="measure"):
        ConditionGate("final", draw(4), 0.0, "tan")  # type: ignore[arg-type]
