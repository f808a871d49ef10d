"""Edits leave nothing behind, compute in float32, compose in order, and keep one state per row and generation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from steerbench import Decoding, LanguageModel, SteerbenchError, Steering, generate
from steerbench.contract import tiny
from steerbench.contract.case import Probe
from steerbench.data import user
from steerbench.edits import Add, Edit, PlacedEdit, Site
from steerbench.engine.generate import _generate_batch
from steerbench.engine.positions import Positions
from steerbench.learn import Tokens, activations, log_probs, response_logits
from steerbench.models.sites import SITE_NAMES
from steerbench.steering.parts import PerPosition

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


class Front(Edit):
    """Adds another vector to each of the first prompt positions."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)

    def start(self, prompt: Tensor, mask: Tensor) -> PerPosition:
        position = mask.long().cumsum(1) - 1
        vectors: Any = self.vectors
        more = prompt.shape[1] - len(vectors)
        table = torch.cat([vectors, vectors.new_zeros(max(more, 0), vectors.shape[1])])
        return PerPosition(table[position.clamp(min=0)])  # not zero in padding: to leave that out is the engine's part

    def forward(self, h: Tensor, state: Any) -> Tensor:
        return h + torch.as_tensor(state)


class Ramp(Edit):
    """Adds 1, 2, 3, ... to what the prompt's columns hold, and keeps the shapes it was called with."""

    shapes: ClassVar[list[tuple[torch.Size, torch.Size]]] = []

    def start(self, prompt: Tensor, mask: Tensor) -> PerPosition:
        columns = torch.arange(1.0, prompt.shape[1] + 1)
        return PerPosition(columns[None, :, None].expand(len(prompt), -1, 1))

    def forward(self, h: Tensor, state: Any) -> Tensor:
        self.shapes.append((h.shape, state.shape))
        return h + torch.as_tensor(state)


class TooShort(Edit):
    def start(self, prompt: Tensor, mask: Tensor) -> PerPosition:
        return PerPosition(prompt[:, :1])

    def forward(self, h: Tensor, state: Any) -> Tensor:
        return h + torch.as_tensor(state)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    AddMean.starts.clear()
    Spy.seen.clear()
    Ramp.shapes.clear()


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
    with unchanged(llama), pytest.raises(torch.OutOfMemoryError):
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


def naive_front(lm: LanguageModel, vectors: Tensor, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    """Return the logits of each response token, (tokens, vocabulary), of one unpadded text, with a hook of our own."""
    block = lm.anatomy.blocks[1]
    n = min(len(vectors), len(prompt))

    def shift(module: Any, args: Any, output: Any) -> Any:
        h = (output if isinstance(output, Tensor) else output[0]).clone()
        h[0, :n] += vectors[:n]
        return h if isinstance(output, Tensor) else (h, *output[1:])

    handle = block.register_forward_hook(shift)
    with torch.no_grad():
        logits: Tensor = lm.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    handle.remove()
    return logits


def test_a_state_per_position_follows_its_positions(lm: LanguageModel) -> None:
    """Left and right padding, prompts shorter than the vectors, with and without cache: one result."""
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)) * 3
    steering = Steering(edits=(at(Front(vectors), scope="all"),))
    batch = lm.left_padded(SEQUENCES)
    new = _generate_batch(lm, batch, steering, FEW, [], True)
    assert new == _generate_batch(lm, batch, steering, FEW, [], False)
    tokens = [Tokens(t.prompt, tuple(ids)) for t, ids in zip(SEQUENCES, new, strict=True)]
    plain = dict(response_logits(lm, tokens))
    for i, logits in response_logits(lm, tokens, steering):
        naive = naive_front(lm, vectors, *tokens[i])
        torch.testing.assert_close(logits, naive, rtol=1e-4, atol=1e-4)
        assert tuple(naive.argmax(-1).tolist()) == tokens[i].response
        assert not torch.isclose(naive, plain[i], atol=1e-3).all(-1).any()


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "recomputed"])
@pytest.mark.parametrize("site", SITE_NAMES)
def test_a_state_per_position_has_the_positions_of_the_pass(llama: LanguageModel, site: str, use_cache: bool) -> None:
    batch = llama.left_padded([Tokens((5,)), Tokens((7, 8, 9))])
    _generate_batch(llama, batch, Steering(edits=(at(Ramp(), site, scope="all"),)), FEW, [], use_cache)
    assert len(Ramp.shapes) == FEW.max_new_tokens
    assert all(h[:2] == state[:2] for h, state in Ramp.shapes)


def test_a_state_per_position_is_zero_in_padding_and_behind_the_prompt(llama: LanguageModel) -> None:
    with edited(llama) as pairs:
        _generate_batch(llama, llama.left_padded(SEQUENCES), Steering(edits=(at(Ramp(), scope="all"),)), FEW, [], True)
        run(llama, at(Ramp(), scope="all"))
    rows = [(after - before).mean(-1).round().int().tolist() for before, after in pairs]
    assert rows[0] == [[0, 0, 0, 4], [1, 2, 3, 4], [0, 0, 3, 4]]
    assert all(step == [[0], [0], [0]] for step in rows[1:-1])
    assert rows[-1] == [[1, 2, 3, 4, 0], [1, 0, 0, 0, 0], [1, 2, 0, 0, 0]]  # longest first, right padded


def test_a_state_per_position_at_final_holds_the_last_prompt_position(llama: LanguageModel) -> None:
    plain = dict(response_logits(llama, SEQUENCES))
    shifted = dict(response_logits(llama, SEQUENCES, Steering(edits=(at(Ramp(), "final", scope="all"),))))
    head: Any = llama.anatomy.head
    for i, logits in shifted.items():
        torch.testing.assert_close(logits[0], plain[i][0] + head.weight.sum(1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits[1:], plain[i][1:])


def test_a_state_per_position_at_final_moves_the_first_token_alone(llama: LanguageModel) -> None:
    """In generation, where of the prompt only the last position arrives at the head."""
    vectors = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)) * 9
    steering = Steering(edits=(at(Front(vectors), "final", scope="all"),))
    new = _generate_batch(llama, llama.left_padded(SEQUENCES), steering, FEW, [], True)
    plain = _generate_batch(llama, llama.left_padded(SEQUENCES), Steering(), FEW, [], True)
    for t, ids, others in zip(SEQUENCES, new, plain, strict=True):
        ((state,), (after,)) = (
            activations(
                llama, Site("final"), [Tokens(t.prompt, tuple(more))], "last_response" if more else "last_prompt"
            )
            for more in ([], ids[:1])
        )
        head: Any = llama.anatomy.head
        assert ids[:2] == [int(head(state + vectors[0]).argmax()), int(head(after).argmax())]
        assert ids[0] != others[0]


def test_a_state_for_some_positions_only_is_refused(llama: LanguageModel) -> None:
    with (
        unchanged(llama),
        pytest.raises(SteerbenchError, match=r"TooShort keeps values for \(3, 1\) positions, not for"),
    ):
        run(llama, at(TooShort()))


def test_contract_probes_slice_a_state_per_position(llama: LanguageModel) -> None:
    h = torch.randn(2, 4, 32)
    for site, ramp in {"resid_post": [1, 2, 3, 4], "final": [0, 0, 0, 1]}.items():
        probe = Probe(at(Ramp(), site), h)
        state = probe.start(h)
        assert (probe.edited(h, state) - h).mean(-1)[0].round().tolist() == ramp
        assert (probe.edited(h[:, 1:], state) - h[:, 1:]).mean(-1)[1].round().tolist() == ramp[1:]


@pytest.mark.parametrize("rows", [[Tokens((5,)), Tokens((6, 7))], [Tokens((2, 5))]])
def test_decoding_steps_of_rows_that_all_go_on_need_no_mask(llama: LanguageModel, rows: list[Tokens]) -> None:
    """And a step that holds an end token needs one, as all steps after it do, whatever ids they hold."""
    positions = Positions(llama.left_padded(rows), [2], cached=True)
    whole = []
    for step in ([3, 4], [5, 5], [5, 2], [5, 5]):
        ids = torch.tensor([[i] for i in step[-len(rows) :]])
        positions.advance(ids if positions.width else llama.left_padded(rows).input_ids)
        whole.append(positions.whole)
        masks = [positions.mask(scope)[:, -1, 0].tolist() for scope in ("all", "response", "prompt")]
        if positions.past:
            going_on = [True] * (len(rows) - 1) + [positions.whole]
            assert masks == [going_on, going_on, [False] * len(rows)]
    assert whole == [False, True, False, False]


def test_steps_after_a_wider_pass_know_the_rows_it_finished(llama: LanguageModel) -> None:
    """Several new tokens at once, as in assisted decoding: the end may stand in the middle of them."""
    positions = Positions(llama.right_padded([Tokens((5, 6)), Tokens((7, 8))]), [2], cached=True)
    masks = []
    for ids in ([[5, 6], [7, 8]], [[3], [3]], [[3, 2, 4], [3, 4, 4]], [[3], [3]]):
        positions.advance(torch.tensor(ids))
        masks.append((positions.whole, positions.mask("all")[..., 0].int().tolist()))
    assert masks == [
        (False, [[1, 1], [1, 1]]),
        (True, [[1], [1]]),
        (False, [[1, 0, 0], [1, 1, 1]]),
        (False, [[0], [1]]),
    ]


@pytest.mark.parametrize("wide", [1, 7])
def test_a_vector_that_is_not_as_wide_as_the_states_is_refused(llama: LanguageModel, wide: int) -> None:
    """One value alone would be spread over the whole state."""
    steering = Steering(edits=(PlacedEdit(Site("resid_post", 1), Add(torch.ones(wide)), "all"),))
    with pytest.raises(SteerbenchError, match=r"Add does not fit resid_post\.1, whose states are 32 wide"):
        generate(llama, [user("Hi")], steering, Decoding(max_new_tokens=3))
