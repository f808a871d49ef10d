"""A folded constant does what the hook did, costs no hook, and leaves no trace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from steerbench import Decoding, LanguageModel, SteerbenchError, Steering, generate
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Add, Edit, PlacedEdit, Site
from steerbench.engine import generate as generation
from steerbench.engine import logits as scoring
from steerbench.engine.bias_folding import folded
from steerbench.engine.generate import _generate_batch
from steerbench.engine.install import steered
from steerbench.engine.logits import batch_logits
from steerbench.engine.positions import Positions
from steerbench.learn import Tokens, activations, response_logits

SEQUENCES = [Tokens((5,), (6, 7, 8)), Tokens((30, 9, 10, 11), (12,)), Tokens((13, 14), (15, 16))]
DIALOGUES = [user("Hi"), user("How do I bake a cake?"), user("")]
FEW = Decoding(max_new_tokens=6)


class Double(Edit):
    def forward(self, h: Tensor, state: Any) -> Tensor:
        return h * 2


class Hooked(Add):
    """Adds like its parent, and says of no vector that it is a constant."""

    def constant(self) -> Any:
        return None


def width(lm: LanguageModel, site: str) -> int:
    return len(activations(lm, Site(site, 1), [Tokens((3,))], "last_prompt")[0])  # type: ignore[arg-type]


def add(lm: LanguageModel, site: str, layer: int = 1, *, kind: type[Add] = Add, scope: Any = "all") -> PlacedEdit:
    """Return an edit that adds a random vector of length about 3, another one at each place."""
    generator = torch.Generator().manual_seed(layer + len(site))
    n = width(lm, site)
    vector = torch.randn(n, generator=generator) * 3 / n**0.5
    return PlacedEdit(Site(site, layer), kind(vector, 0.8), scope)  # type: ignore[arg-type]


def everywhere(lm: LanguageModel, site: str, kind: type[Add] = Add) -> tuple[PlacedEdit, ...]:
    return tuple(add(lm, site, layer, kind=kind) for layer in range(lm.n_layers))


def projection(lm: LanguageModel, layer: int = 1) -> Any:
    return lm.anatomy.place(Site("z", layer)).module


def n_hooks(lm: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


@contextmanager
def unchanged(lm: LanguageModel) -> Iterator[None]:
    """Assert that the model has the same parameters afterwards: objects, names, order and values."""
    projection(lm)  # the anatomy is found by a pass of its own
    before = {name: (p, p.clone()) for name, p in lm.model.named_parameters()}
    absent = [name for name, m in lm.model.named_modules() if getattr(m, "bias", 0) is None]
    saved = list(lm.model.state_dict())
    yield
    after = dict(lm.model.named_parameters())
    assert list(after) == list(before)
    assert list(lm.model.state_dict()) == saved
    assert [name for name, m in lm.model.named_modules() if getattr(m, "bias", 0) is None] == absent
    assert all(after[name] is p and torch.equal(p, copy) for name, (p, copy) in before.items())
    assert n_hooks(lm) == 0


@contextmanager
def spied(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Sequence[PlacedEdit]]]:
    """Record which edits are left to hooks."""
    left: list[Sequence[PlacedEdit]] = []

    def spy(model: Any, anatomy: Any, edits: Sequence[PlacedEdit], *more: Any, **named: Any) -> Any:
        left.append(edits)
        return steered(model, anatomy, edits, *more, **named)

    with monkeypatch.context() as patch:
        for module in (generation, scoring):
            patch.setattr(module, "steered", spy)
        yield left


def logits(lm: LanguageModel, *edits: PlacedEdit, tokens: Sequence[Tokens] = SEQUENCES) -> list[Tensor]:
    found = dict(response_logits(lm, tokens, Steering(edits=edits)))
    return [found[i] for i in range(len(tokens))]


@pytest.mark.parametrize("site", ["z", "attn_out"])
def test_scoring_gives_what_the_hook_gave(lm: LanguageModel, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with spied(monkeypatch) as left, unchanged(lm):
        free = logits(lm, *everywhere(lm, site))
        hooked = logits(lm, *everywhere(lm, site, Hooked))
    assert [len(edits) for edits in left] == [0, lm.n_layers]
    for a, b, plain in zip(free, hooked, logits(lm), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert not torch.isclose(a, plain, atol=1e-2).all(-1).any()


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "recomputed"])
@pytest.mark.parametrize("site", ["z", "attn_out"])
def test_generation_gives_what_the_hook_gave(
    lm: LanguageModel, site: str, use_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ragged, left-padded batch; each row's logits are those of scoring its ids, with hooks."""
    batch = lm.left_padded(SEQUENCES)
    with spied(monkeypatch) as left, unchanged(lm):
        new = _generate_batch(lm, batch, Steering(edits=everywhere(lm, site)), FEW, [], use_cache)
    assert left == [[]]
    hooked = _generate_batch(lm, batch, Steering(edits=everywhere(lm, site, Hooked)), FEW, [], use_cache)
    assert new == hooked
    given = [Tokens(t.prompt, tuple(ids)) for t, ids in zip(SEQUENCES, new, strict=True)]
    for row, t in zip(logits(lm, *everywhere(lm, site, Hooked), tokens=given), given, strict=True):
        stop = next((i for i, token in enumerate(t.response) if token in lm.end_ids), len(t.response))
        assert tuple(row.argmax(-1).tolist())[:stop] == t.response[:stop]


def test_the_bias_is_the_naive_one(lm: LanguageModel) -> None:
    """Two edits of z, one of attn_out, of one projection: bias + W (v1 + v2) + u."""
    edits = [add(lm, "z"), add(lm, "attn_out"), add(lm, "z")]
    module = projection(lm)
    assert isinstance(module, nn.Linear | Conv1D)
    weight = module.weight if isinstance(module, nn.Linear) else module.weight.T
    expected = 2 * weight @ (0.8 * edits[0].edit.vector) + 0.8 * edits[1].edit.vector  # type: ignore[operator]
    if module.bias is not None:
        expected = expected + module.bias
    with unchanged(lm), folded(lm.anatomy, edits) as rest:
        assert rest == []
        torch.testing.assert_close(module.bias.detach(), expected.detach(), rtol=1e-5, atol=1e-5)
        assert not module.bias.requires_grad
        assert n_hooks(lm) == 0


def test_a_half_precision_bias_is_cast_once(llama: LanguageModel) -> None:
    llama.model.to(torch.bfloat16)
    edits = [PlacedEdit(Site("attn_out", 1), Add(torch.full((32,), 1 / 3)), "all") for _ in range(3)]
    edits += [PlacedEdit(Site("attn_out", 1), Add(torch.full((32,), 2.0**-9)), "all") for _ in range(256)]
    with unchanged(llama), folded(llama.anatomy, edits):
        bias = projection(llama).bias
        assert bias.dtype == torch.bfloat16
        assert torch.equal(bias, torch.full((32,), 1.5, dtype=torch.bfloat16))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_restores_the_biases(lm: LanguageModel, error: type[BaseException]) -> None:
    with unchanged(lm), pytest.raises(error), folded(lm.anatomy, [add(lm, "z", 0), add(lm, "attn_out", 2)]):
        raise error


@pytest.mark.parametrize("site", ["z", "resid_post"])
def test_a_site_that_does_not_exist_changes_nothing(llama: LanguageModel, site: Any) -> None:
    edits = (add(llama, "z"), PlacedEdit(Site(site, 7), Add(torch.ones(32)), "all"))
    with unchanged(llama), pytest.raises(SteerbenchError, match="layer 7"):
        generate(llama, DIALOGUES, Steering(edits=edits), FEW)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_it_works_in_every_gradient_mode(llama: LanguageModel, mode: Callable[[], Any]) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with unchanged(llama):
        with mode(), folded(llama.anatomy, everywhere(llama, "z")):
            inside = llama.model(ids).logits
            assert not any(p.requires_grad for p in llama.model.parameters())
        plain = llama.model(ids).logits
    assert not inside.requires_grad
    assert not torch.isclose(inside, plain, atol=1e-2).all()
    assert torch.equal(llama.model(ids).logits, plain)


LEFT: dict[str, Callable[[LanguageModel], list[PlacedEdit]]] = {
    "prompt scope": lambda lm: [add(lm, "z", scope="prompt")],
    "response scope": lambda lm: [add(lm, "attn_out", scope="response")],
    "another site": lambda lm: [add(lm, "mlp_out"), add(lm, "resid_post")],
    "an edit that names no constant": lambda lm: [add(lm, "z", kind=Hooked)],
    "mixed with another edit": lambda lm: [add(lm, "z"), PlacedEdit(Site("z", 1), Double(), "all")],
    "mixed scopes": lambda lm: [add(lm, "attn_out"), add(lm, "attn_out", scope="prompt")],
    "strength zero": lambda lm: [PlacedEdit(Site("z", 1), Add(torch.ones(width(lm, "z")), 0.0), "all")],
    "zero vector": lambda lm: [PlacedEdit(Site("attn_out", 1), Add(torch.zeros(32)), "all")],
    "a single number": lambda lm: [PlacedEdit(Site("attn_out", 1), Add(torch.ones(1)), "all")],
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_to_hooks(llama: LanguageModel, case: str) -> None:
    edits = LEFT[case](llama)
    module = projection(llama)
    with unchanged(llama), folded(llama.anatomy, edits) as rest:
        assert rest == edits
        assert module.bias is None


@pytest.mark.parametrize(("fold_at", "other_at"), [("z", "attn_out"), ("attn_out", "z"), ("z", "resid_post")])
def test_edits_of_other_places_do_not_stop_it(lm: LanguageModel, fold_at: str, other_at: str) -> None:
    """Neither at another layer nor on the other side of the projection; the result is the same."""
    double = PlacedEdit(Site(other_at, 1), Double(), "all")  # type: ignore[arg-type]
    with folded(lm.anatomy, [double, add(lm, fold_at), add(lm, "z", 0, scope="prompt")]) as rest:
        assert [(p.site.name, p.site.layer) for p in rest] == [(other_at, 1), ("z", 0)]
    free = logits(lm, double, add(lm, fold_at))
    hooked = logits(lm, double, add(lm, fold_at, kind=Hooked))
    for a, b in zip(free, hooked, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_order_decides_where_an_edit_is_mixed_in(llama: LanguageModel) -> None:
    double = PlacedEdit(Site("z", 1), Double(), "all")
    for order in (1, -1):
        edits, hooked = ([add(llama, "z", kind=kind), double][::order] for kind in (Add, Hooked))
        assert all(torch.equal(a, b) for a, b in zip(logits(llama, *edits), logits(llama, *hooked), strict=True))


def test_strength_zero_is_bit_equal(lm: LanguageModel) -> None:
    off = tuple(PlacedEdit(Site(site, 1), Add(torch.ones(width(lm, site)), 0.0), "all") for site in ("z", "attn_out"))
    assert all(torch.equal(a, b) for a, b in zip(logits(lm, *off), logits(lm), strict=True))
    assert generate(lm, DIALOGUES, Steering(edits=off), FEW) == generate(lm, DIALOGUES, decoding=FEW)


def test_quantised_and_foreign_projections_are_left_to_hooks(llama: LanguageModel) -> None:
    class Quantised(nn.Parameter):
        """Stands for weights in another storage, which answer matrix products all the same."""

    class Foreign(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight, requires_grad=False)

        def forward(self, h: Tensor) -> Tensor:
            return h @ self.weight.T

    blocks: Any = llama.anatomy.blocks
    blocks[0].self_attn.o_proj.weight = Quantised(blocks[0].self_attn.o_proj.weight.detach(), requires_grad=False)
    blocks[1].self_attn.o_proj = Foreign(blocks[1].self_attn.o_proj.weight.detach())
    edits = everywhere(llama, "z")
    with folded(llama.anatomy, edits) as rest:
        assert rest == list(edits[:2])
    for a, b in zip(logits(llama, *edits), logits(llama, *everywhere(llama, "z", Hooked)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_an_observer_sees_what_would_be_folded(llama: LanguageModel) -> None:
    seen: list[str] = []
    steering = Steering(edits=(add(llama, "z"), add(llama, "attn_out")))
    list(batch_logits(llama, SEQUENCES, steering, lambda site, before, after: seen.append(str(site))))
    assert sorted(seen) == ["attn_out.1", "z.1"]


def test_nothing_is_moved_behind_an_end_token(llama: LanguageModel) -> None:
    """A response that goes on behind one is scored with hooks, which stop there."""
    end = llama.end_ids[0]
    inner = [Tokens((5, 6), (7, end, 8, 9)), Tokens((5,), (6,))]
    free, hooked = (logits(llama, *everywhere(llama, "z", kind), tokens=inner) for kind in (Add, Hooked))
    assert all(torch.equal(a, b) for a, b in zip(free, hooked, strict=True))


def test_steered_itself_hooks_everything(llama: LanguageModel) -> None:
    positions = Positions(llama.right_padded(SEQUENCES), llama.end_ids, cached=False)
    with unchanged(llama), steered(llama.model, llama.anatomy, everywhere(llama, "z"), positions):
        assert n_hooks(llama) == llama.n_layers + 1
        assert projection(llama).bias is None


def test_every_family_has_a_projection_that_can_be_folded() -> None:
    """With and without a bias, and transposed: the tests above cover all three."""
    kinds = set()
    for family in tiny.FAMILIES:
        module = projection(tiny.language_model(family))
        kinds.add((isinstance(module, Conv1D), module.bias is not None))
    assert kinds == {(True, True), (False, True), (False, False)}
