"""A constant is a constant, whoever wrote the edit: it is folded, or added once, and the edit itself is not asked."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from steerbench import LanguageModel, Steering
from steerbench.data import user
from steerbench.edits import Add, Edit, PlacedEdit, Scope, Site
from steerbench.engine.generate import generate_fixed
from steerbench.learn import Tokens, log_probs

CALLS: Counter[str] = Counter()
NEW = 6


class Mine(Edit):
    """What a third party writes: not an `Add`, not even a buffer called `vector`."""

    def __init__(self, direction: Tensor, size: float) -> None:
        super().__init__()
        self.register_buffer("direction", direction)
        self.size = size

    def constant(self) -> Tensor:
        return self.size * torch.as_tensor(self.direction)

    def forward(self, h: Tensor, state: Any) -> Tensor:
        CALLS["Mine"] += 1
        return h + self.constant()


class Theirs(Add):
    def constant(self) -> Tensor:
        return super().constant()

    def forward(self, h: Tensor, state: Any) -> Tensor:
        CALLS["Theirs"] += 1
        return super().forward(h, state)


class Hidden(Mine):
    """The same, and silent about it: its own `forward` ends the constant that it would inherit."""

    def forward(self, h: Tensor, state: Any) -> Tensor:
        CALLS["Hidden"] += 1
        return h + self.size * torch.as_tensor(self.direction)


def steering(cls: Any, site: str, scope: Scope) -> Steering:
    return Steering(edits=(PlacedEdit(Site.parse(site), cls(torch.linspace(-1, 1, 32), 2.0), scope),))


def calls(lm: LanguageModel, cls: Any, site: str, scope: Scope) -> int:
    CALLS.clear()
    generate_fixed(lm, [user("Hi"), user("How do I bake?")], steering(cls, site, scope), NEW)
    return CALLS[cls.__name__]


@pytest.mark.parametrize(
    ("site", "scope", "expected"),
    [
        ("z.1", "all", 0),
        ("attn_out.0", "all", 0),
        ("z.1", "response", 1),
        ("resid_post.1", "all", 1),
        ("resid_post.1", "response", 1),
        ("final", "response", 1),
    ],
)
def test_forward_runs_no_more_than_where_the_scope_is_cut_out(
    llama: LanguageModel, site: str, scope: Scope, expected: int
) -> None:
    """Once in the prefill; folded, not even there. An edit that does not say that it is constant runs in every step."""
    assert calls(llama, Mine, site, scope) == calls(llama, Theirs, site, scope) == expected
    assert calls(llama, Hidden, site, scope) == NEW


@pytest.mark.parametrize(("site", "scope"), [("z.1", "all"), ("resid_post.1", "response")])
def test_it_gives_what_add_gives(llama: LanguageModel, site: str, scope: Scope) -> None:
    tokens = [Tokens((5,), (6, 7, 8)), Tokens((30, 9, 10, 11), (12,))]
    mine, add, hidden = (log_probs(llama, tokens, steering(c, site, scope)) for c in (Mine, Theirs, Hidden))
    for a, b, c in zip(mine, add, hidden, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)


def test_constants_of_several_authors_are_summed(llama: LanguageModel) -> None:
    both = (*steering(Mine, "resid_post.1", "response").edits, *steering(Theirs, "resid_post.1", "all").edits)
    CALLS.clear()
    generate_fixed(llama, [user("Hi")], Steering(edits=both), NEW)
    assert CALLS == {"Mine": 1, "Theirs": 1}


def test_a_number_is_no_constant_to_the_engine(llama: LanguageModel) -> None:
    """The contract says what is wrong with it; generation runs the edit itself."""
    edit = Mine(torch.tensor(0.5), 1.0)
    CALLS.clear()
    generate_fixed(llama, [user("Hi")], Steering(edits=(PlacedEdit(Site("resid_post", 1), edit, "response"),)), NEW)
    assert CALLS == {"Mine": NEW}


def test_a_constant_is_inherited_with_its_forward_only() -> None:
    class Renamed(Mine):
        pass

    vector = torch.ones(3)
    assert torch.equal(torch.as_tensor(Renamed(vector, 2.0).constant()), 2 * vector)
    assert Hidden(vector, 2.0).constant() is None
