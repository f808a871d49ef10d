"""The control without labels: against its formula, and that no label is left in it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from steerbench import Example, FitContext, LanguageModel, load
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Add, Site
from steerbench.learn import Tokens, contrast

EXAMPLES = tiny.examples()[:9]


def context(lm: LanguageModel, n: int = 9, seed: int = 0) -> FitContext:
    return FitContext(lm=lm, examples=EXAMPLES[:n], reward=tiny.VowelReward(), seed=seed)


def vector(own: FitContext, name: str = "shuffled_labels", **fields: Any) -> Tensor:
    (placed,) = load("methods", name)(**fields).fit(own).edits
    assert isinstance(placed.edit, Add)
    return placed.edit.vector


@pytest.mark.parametrize("fields", [{}, {"relative_norm": 0.3}, {"layer": 0, "pool": "last_response"}], ids=str)
def test_is_the_difference_of_means_with_half_of_the_pairs_swapped(llama: LanguageModel, fields: Any) -> None:
    own = context(llama)
    found = vector(own, **fields)
    states = contrast(own, Site("resid_post", fields.get("layer", 1)), fields.get("pool", "response_mean"))
    order = torch.randperm(9, generator=own.generator("shuffled_labels")).tolist()
    swapped = sum((states.differences[i] if k < 4 else -states.differences[i]) / 4 for k, i in enumerate(order[:8]))
    length = vector(own, "caa", **fields).norm()
    torch.testing.assert_close(found, torch.as_tensor(swapped) / torch.as_tensor(swapped).norm() * length)


def test_what_all_pairs_share_is_not_in_it(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preferred states are moved by 5 along one axis, in seven pairs: CAA finds it, the control has none of it."""
    own = FitContext(
        lm=llama,
        examples=[Example(str(i), str(i), user(f"Q{i}"), "Yes", "No") for i in range(7)],
        reward=tiny.VowelReward(),
    )
    draw = torch.Generator().manual_seed(0)
    rows = {p.chosen: torch.randn(32, generator=draw).index_fill(0, torch.tensor([3]), 5.0) for p in own.pairs()}

    def read(sites: list[Site], tokens: list[Tokens], pool: str) -> dict[Site, list[Tensor]]:
        return {site: [rows.get(t, torch.zeros(32)) for t in tokens] for site in sites}

    monkeypatch.setattr(own, "activations_at", read)
    assert vector(own, "caa")[3] == pytest.approx(5)
    assert abs(vector(own)[3]) < 1e-5
    assert vector(own).norm() == pytest.approx(float(vector(own, "caa").norm()), rel=1e-5)


def test_a_single_pair_leaves_nothing(llama: LanguageModel) -> None:
    assert not vector(context(llama, 1)).any()


def test_another_seed_swaps_another_half(llama: LanguageModel) -> None:
    one, again, other = (vector(context(llama, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
