"""Gradients reach edits through the frozen model, are right, and leave the model alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steerbench import LanguageModel, SteerbenchError, Steering
from steerbench.edits import Add, Edit, Gated, PlacedEdit, Scope, Site
from steerbench.engine.gradients import trainable
from steerbench.learn import Tokens, log_probs

RAGGED = [Tokens((5,), (6, 7, 8)), Tokens((30, 9, 10, 11), (12,)), Tokens((13, 14), (15, 16))]


def nll(lm: LanguageModel, edits: list[PlacedEdit]) -> Tensor:
    """Return the negative log-probability of all response tokens, with gradients."""
    batch = lm.right_padded(RAGGED)
    with trainable(lm, edits, batch):
        logits = lm.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits.log_softmax(-1)
    return -torch.stack(
        [
            logits[row, len(t.prompt) + i - 1, token]
            for row, t in enumerate(RAGGED)
            for i, token in enumerate(t.response)
        ]
    ).sum()


def placed(vector: Tensor, site: str, scope: Scope = "response", strength: float = 2.0) -> PlacedEdit:
    return PlacedEdit(Site.parse(site), Add(vector, strength), scope)


class Low(Edit):
    """h + (h A) B, with parameters, dropout and all."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.linspace(-1, 1, 64).reshape(32, 2))
        self.up = nn.Parameter(torch.linspace(1, -1, 64).reshape(2, 32))

    def forward(self, h: Tensor, state: Any) -> Tensor:
        return h + h @ self.down @ self.up


@pytest.mark.parametrize("site", ["resid_post.1", "z.0", "z.1", "final", "attn_out.2"])
@pytest.mark.parametrize("scope", ["response", "all", "prompt"])
def test_gradients_are_those_of_finite_differences(llama: LanguageModel, site: str, scope: Scope) -> None:
    """In float64, but for the norms, which compute in float32: hence the tolerance."""
    lm = LanguageModel(llama.model.double(), llama.tokenizer)
    vector = torch.linspace(-0.2, 0.2, 32, dtype=torch.float32).requires_grad_()
    nll(lm, [placed(vector, site, scope)]).backward()  # type: ignore[no-untyped-call]
    assert vector.grad is not None
    directions = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    for d in directions:
        step = 2e-3 * d
        ahead, behind = (nll(lm, [placed(vector.detach() + s, site, scope)]) for s in (step, -step))
        assert (ahead - behind).item() / 4e-3 == pytest.approx((vector.grad @ d).item(), rel=2e-3, abs=2e-3)
    assert vector.grad.abs().max() > 1e-3


def test_padding_and_the_prompt_add_no_gradient(llama: LanguageModel) -> None:
    """What each row gives alone, summed up: the first row is padded, and its prompt is out of the scope."""
    gradients = []
    for rows in (RAGGED, *([t] for t in RAGGED)):
        vector = torch.zeros(32, requires_grad=True)
        batch = llama.right_padded(rows)
        with trainable(llama, [placed(vector, "resid_post.1")], batch):
            logits = llama.model(batch.input_ids, batch.attention_mask, use_cache=False).logits.log_softmax(-1)
        sum(
            logits[r, len(t.prompt) + i - 1, token] for r, t in enumerate(rows) for i, token in enumerate(t.response)
        ).backward()
        gradients.append(vector.grad)
    torch.testing.assert_close(gradients[0], sum(gradients[1:]), rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_scoring(lm: LanguageModel) -> None:
    width = 32
    edits = [placed(torch.linspace(-1, 1, width), "resid_post.1")]
    scored = log_probs(lm, RAGGED, Steering(edits=tuple(edits)))
    assert nll(lm, edits).item() == pytest.approx(-float(torch.cat(scored).sum()), rel=1e-4)


def test_a_step_lowers_the_loss_and_the_trained_edit_keeps_it(llama: LanguageModel) -> None:
    edit = Low()
    edits = [PlacedEdit(Site("resid_post", 1), edit, "response")]
    optimizer = torch.optim.SGD(edit.parameters(), lr=1e-3)
    before = nll(llama, edits)
    before.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    after = nll(llama, edits)
    assert after.item() < before.item()
    scored = torch.cat(log_probs(llama, RAGGED, Steering(edits=tuple(edits))))
    assert after.item() == pytest.approx(-float(scored.sum()), rel=1e-4)
    assert edit.down.grad is not None


@pytest.mark.parametrize("asking", [False, True])
def test_the_model_is_left_as_it_was(llama: LanguageModel, asking: bool) -> None:
    llama.model.requires_grad_(asking)
    vector = torch.zeros(32, requires_grad=True)
    nll(llama, [placed(vector, "z.1")]).backward()  # type: ignore[no-untyped-call]
    assert all(p.requires_grad is asking and p.grad is None for p in llama.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.model.modules())
    with pytest.raises(InterruptedError), trainable(llama, [placed(vector, "z.1")], llama.right_padded(RAGGED)):
        raise InterruptedError
    assert all(p.requires_grad is asking for p in llama.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.model.modules())


def test_what_cannot_be_trained_is_refused(llama: LanguageModel) -> None:
    ranked = PlacedEdit(Site("resid_post", 1), Gated(torch.eye(32)[:2]))
    with pytest.raises(SteerbenchError, match=r"Gated at resid_post\.1 is chosen by rank; it has no gradient"):
        nll(llama, [ranked])
    away = placed(torch.zeros(32, device="meta"), "resid_post.1")
    with pytest.raises(SteerbenchError, match=r"Add is on meta and its site resid_post\.1 on cpu; move it there"):
        nll(llama, [away])
