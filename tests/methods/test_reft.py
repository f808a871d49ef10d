"""ReFT: the edit against its formula, its positions, orthonormal rows, and a loss that falls."""

import sys
from typing import Any

import pytest
import torch
from planted_pairs import planted, reply_log_prob

from steerbench import LanguageModel, SteerbenchError, Steering, load
from steerbench.contract import tiny
from steerbench.edits import PlacedEdit, Site
from steerbench.learn import Tokens, log_probs

ReFT: Any = load("methods", "reft")
module: Any = sys.modules[ReFT.__module__]
SITE = Site("resid_post", 1)


def low_rank(scale: float = 1.0, positions: int = 2) -> Any:
    drawn = torch.Generator().manual_seed(0)
    rotation, change = (torch.randn(3, tiny.WIDTH, generator=drawn) for _ in range(2))
    return module.LowRank(rotation, scale * change, scale * torch.ones(3), positions)


def test_the_edit_is_the_formula_at_both_ends_of_the_prompt(llama: LanguageModel) -> None:
    """W is R + change; the prompt has six tokens, of which the first two and the last two are edited."""
    edit, tokens = low_rank(), Tokens((5, 6, 7, 8, 9, 10), (11, 12, 13))
    rows = edit.rows()
    torch.testing.assert_close(rows @ rows.T, torch.eye(3), rtol=1e-5, atol=1e-5)
    w = rows + edit.change

    def change(m: Any, a: Any, out: torch.Tensor) -> torch.Tensor:
        new = out.clone()
        for i in (0, 1, 4, 5):
            h = out[0, i]
            new[0, i] = h + rows.T @ (w @ h + edit.bias - rows @ h)
        return new

    handle = llama.model.model.layers[1].register_forward_hook(change)
    wanted = reply_log_prob(llama, tokens)
    handle.remove()
    batch = [tokens, Tokens((5,), (6,)), Tokens(tuple(range(20, 35)), (36,))]
    found = log_probs(llama, batch, Steering(edits=(PlacedEdit(SITE, edit, "prompt"),)))[0].sum()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert float(found) != pytest.approx(float(reply_log_prob(llama, tokens)), abs=1e-2)


def test_without_change_and_bias_it_is_the_identity() -> None:
    h = torch.randn(2, 4, tiny.WIDTH, generator=torch.Generator().manual_seed(1))
    assert torch.equal(low_rank(scale=0.0)(h, torch.ones(2, 4, 1)), h)


def test_training_lowers_the_loss_of_replies_held_out() -> None:
    context = planted(0, pairs=40).context
    (placed,) = ReFT(layer=1, lr=0.02).fit(context).edits
    assert placed.scope == "prompt"
    assert context.report["held_out_loss"][-1] < context.report["held_out_loss"][0] - 0.1
    rows = placed.edit.rows()
    torch.testing.assert_close(rows @ rows.T, torch.eye(4), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_fitted_is_told() -> None:
    context = planted(0, pairs=4).context
    with pytest.raises(SteerbenchError, match=r"rank=33 is outside 1\.\.32"):
        ReFT(rank=33).fit(context)
    with pytest.raises(SteerbenchError, match="positions must be a whole number of 1 or more, not 0"):
        ReFT(positions=0).fit(context)
