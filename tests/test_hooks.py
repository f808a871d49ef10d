"""Edits leave nothing behind, compute in float32, compose in order, and keep one state per row and generation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from steerbench import (
    Add,
    Decoding,
    Edit,
    LanguageModel,
    PlacedEdit,
    Site,
    SteerbenchError,
    Steering,
    Tokens,
    activations,
    generate,
    log_probs,
    response_logits,
    tiny,
    user,
)
from steerbench.generation import _generate_batch
from steerbench.hooks import Positions
from steerbench.sites import SITE_NAMES

DIALOGUES = [user("Hi"), user("How do I bake a cake?"), user("")]
SEQUENCES = [Tokens((5,), (6, 7, 8)), Tokens((30, 9, 10, 11), (12,)), Tokens((13, 14), (15, 16))]
FEW = Decoding(max_new_tokens=4)


class Scale(Edit):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, h: Tensor, state: Any) -> Tensor:
        return h * self.factor


class Fail(Edit):
    """Raises when it is called, or when it is started."""

    def __init__(self, error: type[BaseException], at_start: bool) -> None:
        super().__init__()
        self.error, self.at_start = error, at_start

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        if self.at_start:
            raise self.error("at start")

    def forward(self, h: Tensor, state: Any) -> Tensor:
        raise self.error("in forward")


class Uncopyable(Edit):
    def __deepcopy__(self, memo: object) -> "Uncopyable":
        raise MemoryError

    def forward(self, h: Tensor, state: Any) -> Tensor:
        return h


class AddMean(Edit):
    """Adds the mean of the prompt's activations: state that differs from row to row."""

    starts: ClassVar[list[tuple[Tensor, Tensor]]] = []

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        self.starts.append((prompt.clone(), mask.clone()))
        weight = mask[..., None].float()
        return (prompt * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)

    def forward(self, h: Tensor, state: Any) -> Tensor:
        edited: Tensor = h + state
        return edited


class Spy(Edit):
    seen: ClassVar[list[tuple[torch.dtype, bool, bool]]] = []

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.register_buffer("vector", vector)

    def forward(self, h: Tensor, state: Any) -> Tensor:
        self.seen.append((h.dtype, self.training, torch.is_grad_enabled()))
        return h


class Descend(Edit):
    """One gradient step on |h|^2 / 2: learned edits differentiate inside a frozen model."""

    def forward(self, h: Tensor, state: Any) -> Tensor:
        with torch.enable_grad():
            moving = h.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(moving.square().sum() / 2, moving)
        return h - 0.5 * gradient


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    AddMean.starts.clear()
    Spy.seen.clear()


def at(edit: Edit, site: str = "resid_post", layer: int = 1, scope: Any = "response") -> PlacedEdit:
    return PlacedEdit(Site(site, None if site == "final" else layer), edit, scope)  # type: ignore[arg-type]


def width(lm: LanguageModel, site: str) -> int:
    return len(activations(lm, at(Scale(1.0), site).site, [Tokens((3,))], "last_prompt")[0])


def n_hooks(lm: LanguageModel) -> int:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, table)) for module in lm.model.modules() for table in tables)


@contextmanager
def unchanged(lm: LanguageModel) -> Iterator[None]:
    """Assert that the model is the same to the bit afterwards, and free of hooks."""
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict(keep_vars=True).items()}
    buffers = {name: tensor.clone() for name, tensor in lm.model.named_buffers()}
    config = lm.model.config.to_dict()
    yield
    assert n_hooks(lm) == 0
    assert lm.model.config.to_dict() == config
    for name, tensor in [*lm.model.state_dict(keep_vars=True).items(), *lm.model.named_buffers()]:
        assert torch.equal(tensor, (before | buffers)[name]), name


@contextmanager
def edited(lm: LanguageModel) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record block 1's output before any edit, and what block 2 receives."""
    pairs: list[tuple[Tensor, Tensor]] = []
    raw: list[Tensor] = []
    first = lm.anatomy.blocks[1].register_forward_hook(
        lambda m, a, o: raw.append((o if isinstance(o, Tensor) else o[0]).clone())
    )
    last = lm.anatomy.blocks[2].register_forward_pre_hook(lambda m, a: pairs.append((raw.pop(), a[0].clone())))
    yield pairs
    first.remove()
    last.remove()


def run(lm: LanguageModel, *edits: PlacedEdit) -> None:
    """Teacher force a few sequences under some edits."""
    list(response_logits(lm, SEQUENCES, Steering(edits=edits)))


RUNS: list[Callable[[LanguageModel, Steering], Any]] = [
    lambda lm, steering: generate(lm, DIALOGUES, steering, FEW),
    lambda lm, steering: generate(lm, DIALOGUES, steering, FEW, use_cache=False),
    lambda lm, steering: log_probs(lm, SEQUENCES, steering),
]


@pytest.mark.parametrize("call", RUNS, ids=["cached", "recomputed", "teacher forced"])
def test_model_is_bit_equal_after_a_normal_exit(lm: LanguageModel, call: Callable[..., Any]) -> None:
    with unchanged(lm):
        call(lm, Steering(edits=tuple(at(Add(torch.ones(width(lm, s))), s) for s in SITE_NAMES)))


@pytest.mark.parametrize("call", RUNS, ids=["cached", "recomputed", "teacher forced"])
@pytest.mark.parametrize("at_start", [True, False])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, SteerbenchError])
def test_model_is_bit_equal_after_an_exception(
    llama: LanguageModel, error: type[BaseException], at_start: bool, call: Callable[..., Any]
) -> None:
    before = generate(llama, DIALOGUES, decoding=FEW)
    edits = (at(Add(torch.ones(32)), layer=0), at(Fail(error, at_start)), at(Add(torch.ones(32)), "final"))
    with unchanged(llama), pytest.raises(error, match="at start" if at_start else "in forward"):
        call(llama, Steering(edits=edits))
    assert generate(llama, DIALOGUES, decoding=FEW) == before


def test_all_sites_are_resolved_before_any_hook_is_installed(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = []
    place = llama.anatomy.place

    def counting(site: Site) -> Any:
        hooks.append(n_hooks(llama))
        return place(site)

    monkeypatch.setattr(llama.anatomy, "place", counting)
    steering = Steering(edits=(at(Add(torch.ones(32))), at(Add(torch.ones(32)), layer=7)))
    with unchanged(llama), pytest.raises(SteerbenchError, match="layer 7"):
        generate(llama, DIALOGUES, steering, FEW)
    assert hooks == [0, 0]


def test_an_edit_that_cannot_be_installed_leaves_no_hook(llama: LanguageModel) -> None:
    with unchanged(llama), pytest.raises(MemoryError):
        generate(llama, DIALOGUES, Steering(edits=(at(Add(torch.ones(32)), layer=0), at(Uncopyable()))), FEW)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_strength_zero_gives_bit_equal_logits(family: str, dtype: torch.dtype) -> None:
    lm = tiny.language_model(family)
    lm.model.to(dtype)
    base = dict(response_logits(lm, SEQUENCES))
    for site in SITE_NAMES:
        steering = Steering(edits=(at(Add(torch.ones(width(lm, site)), 0.0), site, scope="all"),))
        for i, logits in response_logits(lm, SEQUENCES, steering):
            assert torch.equal(logits, base[i]), site
        assert generate(lm, DIALOGUES, steering, FEW) == generate(lm, DIALOGUES, decoding=FEW)


def test_small_increments_are_added_once_to_a_half_precision_state(llama: LanguageModel) -> None:
    llama.model.to(torch.bfloat16)
    with edited(llama) as pairs:
        run(llama, *[at(Add(torch.full((32,), 2.0**-11)), scope="all") for _ in range(300)])
    (before, after), mask = pairs[0], torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]).bool()
    expected = (before.double() + 300 * 2.0**-11).to(torch.bfloat16)
    torch.testing.assert_close(after[mask].float(), expected[mask].float(), rtol=2**-8, atol=0)
    one_by_one = before.clone()
    for _ in range(300):
        one_by_one += 2.0**-11
    assert (one_by_one != expected)[mask].float().mean() > 0.5  # what the naive sum loses


def test_edits_at_one_place_compose_in_order_and_are_cast_once(llama: LanguageModel) -> None:
    shift = at(Add(torch.full((32,), 100.0)), scope="all")
    double = at(Scale(2.0), scope="all")
    with edited(llama) as pairs:
        run(llama, shift, double)
        run(llama, double, shift)
        llama.model.to(torch.bfloat16)
        run(llama, at(Scale(1 / 3), scope="all"), at(Scale(3.0), scope="all"))
    real = (0, slice(0, 4))
    torch.testing.assert_close(pairs[0][1][real], (pairs[0][0][real] + 100) * 2)
    torch.testing.assert_close(pairs[1][1][real], pairs[1][0][real] * 2 + 100)
    assert torch.equal(pairs[2][1][real], pairs[2][0][real])


def test_edits_at_one_place_keep_their_own_scopes(llama: LanguageModel) -> None:
    with edited(llama) as pairs:
        run(llama, at(Add(torch.ones(32)), scope="prompt"), at(Add(torch.full((32,), 10.0)), scope="response"))
    before, after = pairs[0]
    row = (after - before)[0].mean(-1).round().tolist()  # the longest sequence: four prompt tokens and one more
    assert row == [1, 1, 1, 11, 10]


def test_an_edit_works_in_float32_on_its_own_copy(llama: LanguageModel) -> None:
    llama.model.to(torch.bfloat16)
    spy = Spy(torch.ones(32, requires_grad=True))
    generate(llama, DIALOGUES, Steering(edits=(at(spy),)), FEW)
    assert set(Spy.seen) == {(torch.float32, False, False)}
    assert spy.training  # the engine put a copy into evaluation mode, not the caller's edit


def test_an_edit_may_differentiate(llama: LanguageModel) -> None:
    halved = list(response_logits(llama, SEQUENCES, Steering(edits=(at(Scale(0.5)),))))
    descended = list(response_logits(llama, SEQUENCES, Steering(edits=(at(Descend()),))))
    for (i, a), (j, b) in zip(halved, descended, strict=True):
        assert i == j
        torch.testing.assert_close(a, b)
    texts = [generate(llama, DIALOGUES, Steering(edits=(at(edit),)), FEW) for edit in (Scale(0.5), Descend())]
    assert texts[0] == texts[1]


def test_every_row_is_edited(lm: LanguageModel) -> None:
    base = log_probs(lm, SEQUENCES)
    steered = log_probs(lm, SEQUENCES, Steering(edits=(at(Add(torch.linspace(-3, 3, 32))),)))
    assert all(not torch.isclose(a, b).any() for a, b in zip(base, steered, strict=True))


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "recomputed"])
@pytest.mark.parametrize("site", SITE_NAMES)
def test_state_starts_once_from_the_real_prompt_positions(lm: LanguageModel, site: str, use_cache: bool) -> None:
    steering = Steering(edits=(at(AddMean(), site),))
    tokens = [lm.tokens(d) for d in DIALOGUES] + [Tokens((9,))]
    batch = lm.left_padded(tokens)
    _generate_batch(lm, batch, steering, FEW, [], use_cache)
    assert len(AddMean.starts) == 1
    prompt, mask = AddMean.starts[0]
    for row, sequence in enumerate(tokens):
        expected = activations(lm, steering.edits[0].site, [Tokens(sequence.prompt)], "all", batch_size=1)[0]
        expected = expected[-1:] if site == "final" else expected
        torch.testing.assert_close(prompt[row][mask[row]], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("site", SITE_NAMES)
def test_state_is_the_same_however_the_pass_is_run(lm: LanguageModel, site: str) -> None:
    """Batched or alone, cached or recomputed, generated or teacher forced: one result."""
    steering = Steering(edits=(at(AddMean(), site), at(Add(torch.linspace(-3, 3, width(lm, site))), site)))
    together = generate(lm, DIALOGUES, steering, FEW)
    assert together == [generate(lm, [d], steering, FEW)[0] for d in DIALOGUES]
    assert together == generate(lm, DIALOGUES, steering, FEW, use_cache=False)
    assert together != generate(lm, DIALOGUES, decoding=FEW)
    tokens = [Tokens(lm.tokens(d).prompt, r.ids) for d, r in zip(DIALOGUES, together, strict=True)]
    alone = [log_probs(lm, [t], steering)[0] for t in tokens]
    for a, b, (i, logits) in zip(
        log_probs(lm, tokens, steering), alone, sorted(response_logits(lm, tokens, steering)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert tuple(logits.argmax(-1).tolist()) == tokens[i].response


def test_state_sees_the_edits_before_it(llama: LanguageModel) -> None:
    """Also those at the same site, as it would if they were one layer below."""
    run(llama, at(AddMean()))
    run(llama, at(Add(torch.full((32,), 5.0)), scope="all"), at(AddMean()))
    (plain, mask), (shifted, _) = AddMean.starts
    torch.testing.assert_close(shifted[mask], plain[mask] + 5)


def test_composed_copies_of_one_edit_keep_their_own_state(llama: LanguageModel) -> None:
    edit = AddMean()
    run(llama, at(edit, layer=0), at(edit, layer=1))
    assert len(AddMean.starts) == 2
    assert not torch.equal(AddMean.starts[0][0], AddMean.starts[1][0])


def test_hooks_of_others_survive(llama: LanguageModel) -> None:
    calls: list[int] = []
    handle = llama.model.register_forward_hook(lambda m, a, o: calls.append(1))
    generate(llama, DIALOGUES, Steering(edits=(at(Add(torch.ones(32))),)), FEW)
    assert len(calls) == FEW.max_new_tokens
    assert n_hooks(llama) == 1
    handle.remove()


@pytest.mark.parametrize("cached", [True, False])
def test_a_finished_row_is_left_alone(llama: LanguageModel, cached: bool) -> None:
    """Token 2 ends a row where it stands behind the prompt; in the prompt it closed an earlier turn."""
    batch = llama.left_padded([Tokens((2, 5, 2)), Tokens((6,))])
    positions = Positions(batch, [2, 9], cached=cached)
    ids = torch.cat([batch.input_ids, torch.tensor([[7, 9, 7, 7], [7, 7, 2, 7]])], dim=1)
    masks = []
    for stop in range(3, 8):
        positions.advance(ids[:, (stop - 1 if cached and stop > 3 else 0) : stop])
        masks.append(positions.mask("response")[:, -1, 0].tolist())
    assert masks == [[True, True], [True, True], [False, True], [False, False], [False, False]]
    assert not positions.mask("prompt")[1, :2].any()
