"""Search over blocks gives what a naive loop gives that draws one candidate at a time and computes all anew."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import language_model as unusual
from naive_search import Text, search
from thorough import mostly_slow
from torch import Tensor
from transformers import LogitsProcessor

from steerbench import Decoding, LanguageModel, SteerbenchError, Steering, generate
from steerbench.contract import tiny
from steerbench.data import Dialogue, Turn, user
from steerbench.edits import (
    Add,
    AddInFront,
    DecodePart,
    DecodingContext,
    Edit,
    Gate,
    LogitsPart,
    PerPosition,
    PlacedEdit,
    Site,
)
from steerbench.engine.sequences import Sequences, can_repeat
from steerbench.learn import Response, Tokens, activations, response_logits
from steerbench.steering.blocks import Blocks, Candidate

RAGGED: list[Dialogue] = [
    user("Hi"),
    user("How do I bake a cake, and what do I need for it?"),
    (Turn("system", "Be brief."), *user("Hello"), Turn("assistant", "Hey"), *user("")),
    user("x"),
    user("Why is the sky blue?"),
]
SAMPLED = Decoding(max_new_tokens=9, temperature=1.0)
FINAL = Site("final")
WHOLE = Blocks()


def liking(ids: Sequence[int]) -> float:
    """Score a response so far, in a way that no two are alike."""
    return float(sum((i + 1) * token**1.5 % 17 for i, token in enumerate(ids))) / max(len(ids), 1)


class Liked(DecodePart):
    """Keeps the candidate that `liking` scores highest; refuses all below a bar, but for the last of three times."""

    seen: list[tuple[str, tuple[int, ...], bool, Any]] = []  # noqa: RUF012 - filled by the tests

    def __init__(self, candidates: int, blocks: Blocks = WHOLE, bar: float | None = None, look: bool = False) -> None:
        self.candidates, self._blocks, self.bar, self.look = candidates, blocks, bar, look

    @property
    def redraws(self) -> bool:
        return self.bar is not None

    @property
    def blocks(self) -> Blocks:
        return self._blocks

    @property
    def site(self) -> Site | None:
        return FINAL if self.look else None

    def select(self, context: DecodingContext, rows: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        chosen = []
        for dialogue, row in zip(context.dialogues, rows, strict=True):
            Liked.seen += [(dialogue[-1].text, c.response.ids, c.finished, c.state) for c in row]
            scores = [liking((c.ahead or c.response).ids) for c in row]
            best = scores.index(max(scores))
            refused = self.bar is not None and max(scores) < self.bar and row[0].attempt < 2
            chosen.append([] if refused else [best] * self.candidates)
        return chosen


class Bias(LogitsPart):
    """Adds to the logit of a token, more with every token so far."""

    def __init__(self, token: int, bias: float) -> None:
        self.token, self.bias = token, bias

    def processor(self, lm: LanguageModel, prompt_ids: Tensor, mask: Tensor) -> LogitsProcessor:
        part, width = self, prompt_ids.shape[1]

        class Processor(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                assert torch.equal(input_ids[:, :width], prompt_ids)
                scores = scores.clone()
                scores[:, part.token] += part.bias + 0.1 * (input_ids.shape[1] - width)
                return scores

        return Processor()


class ByPrompt(Edit):
    """Adds to each row a multiple of its own prompt's mean state, and to its prompt's positions their own number."""

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        mean = (prompt * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        return {"mean": mean, "nothing": None, "shared": torch.tensor(0.3)}

    def forward(self, h: Tensor, state: Any) -> Tensor:
        edited: Tensor = h + state["shared"] * state["mean"]
        return edited


class ByPosition(Edit):
    """Adds to each position of the prompt its own number."""

    def start(self, prompt: Tensor, mask: Tensor) -> PerPosition:
        return PerPosition(mask.cumsum(1)[..., None] * 0.05)

    def forward(self, h: Tensor, state: Any) -> Tensor:
        edited: Tensor = h + state
        return edited


def edited(lm: LanguageModel) -> Steering:
    width = len(activations(lm, Site("resid_post", 1), [Tokens((3,))], "last_prompt")[0])
    return Steering(
        edits=(
            PlacedEdit(Site("resid_post", 1), Add(torch.linspace(-1, 1, width)), "response"),
            PlacedEdit(Site("resid_post", 0), ByPrompt(), "response"),
            PlacedEdit(Site("resid_post", 0), ByPosition(), "all"),
        )
    )


ENDS = Steering(logits=(Bias(2, 3.5),))


def find(lm: LanguageModel, part: DecodePart, steering: Steering = Steering(), **more: Any) -> list[Response]:
    settings: dict[str, Any] = {"decoding": SAMPLED, "reward": tiny.VowelReward()} | more
    return generate(lm, RAGGED, replace(steering, decode=part), **settings)


def naive(lm: LanguageModel, dialogue: Dialogue, part: Liked, steering: Steering) -> tuple[int, ...]:
    def choose(texts: list[Text], attempt: int) -> int | None:
        scores = [liking(lm.cut(text.ids).ids) for text in texts]
        refused = part.bar is not None and max(scores) < part.bar and attempt < 2
        return None if refused else scores.index(max(scores))

    found = search(lm, dialogue, part.candidates, part.blocks, SAMPLED, choose, steering, redraws=part.redraws)
    return found.ids


PARTS: dict[str, Callable[[], Liked]] = {
    "one block": lambda: Liked(3),
    "two tokens": lambda: Liked(3, Blocks(tokens=2)),
    "entropy": lambda: Liked(2, Blocks(tokens=6, entropy=3.4, least=2)),
    "sentences": lambda: Liked(2, Blocks(sentence=True, tokens=5)),
    "lookahead": lambda: Liked(2, Blocks(tokens=2, lookahead=3)),
    "redrawn": lambda: Liked(2, Blocks(tokens=3), bar=9.0),
    "redrawn, ragged": lambda: Liked(2, Blocks(tokens=6, entropy=3.4), bar=9.0),
}
CASES = mostly_slow([(name,) for name in PARTS], lambda case: case[0] == "redrawn, ragged")


def often_ending(lm: LanguageModel) -> LanguageModel:
    """Return the model with many end tokens, so that rows finish early without a logits part."""
    lm.end_ids = [2, *range(5, 259, 9)]
    return lm


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_naive_loop(lm: LanguageModel, name: str) -> None:
    part, steering = PARTS[name](), edited(often_ending(lm))
    found = find(lm, part, steering)
    assert [r.ids for r in found[:3]] == [naive(lm, d, part, steering) for d in RAGGED[:3]]
    assert len({len(r.ids) for r in found}) > 1, "some have to finish early"


def test_logits_parts_act_in_it(llama: LanguageModel) -> None:
    for name in ("two tokens", "entropy"):
        part, steering = PARTS[name](), edited(llama) + ENDS
        found = find(llama, part, steering)
        assert [r.ids for r in found[:2]] == [naive(llama, d, part, steering) for d in RAGGED[:2]]


@pytest.mark.parametrize("name", mostly_slow([(n,) for n in PARTS], lambda case: case[0] == "one block"))
def test_neither_batch_nor_cache_change_it(llama: LanguageModel, name: str) -> None:
    for steering in (edited(often_ending(llama)), edited(llama) + ENDS):
        together = find(llama, PARTS[name](), steering)
        for more in ({"batch_size": 1}, {"batch_size": 3}, {"use_cache": False}):
            again = find(llama, PARTS[name](), steering, **more)
            assert again == together
            assert [r.draws for r in again] == [r.draws for r in together]


def test_it_is_steered(llama: LanguageModel) -> None:
    """The tests above would hold if no edit acted."""
    assert find(llama, Liked(3, Blocks(tokens=2)), edited(llama)) != find(llama, Liked(3, Blocks(tokens=2)))


KINDS = mostly_slow([(b,) for b in (WHOLE, Blocks(tokens=2), Blocks(entropy=3.4))], lambda case: case[0].entropy)


@pytest.mark.parametrize("blocks", KINDS, ids=str)
def test_one_candidate_is_the_model(lm: LanguageModel, blocks: Blocks) -> None:
    often_ending(lm)
    for decoding in (SAMPLED, Decoding(max_new_tokens=9), Decoding(max_new_tokens=9, temperature=0.7, top_p=0.8)):
        assert find(lm, Liked(1, blocks), edited(lm), decoding=decoding) == generate(lm, RAGGED, edited(lm), decoding)


def test_a_block_as_long_as_the_response_is_best_of_n(lm: LanguageModel) -> None:
    often_ending(lm)
    assert find(lm, Liked(4, Blocks(tokens=9))) == find(lm, Liked(4, Blocks(tokens=50))) == find(lm, Liked(4))


@pytest.mark.parametrize(
    "kind", mostly_slow(["jamba", "lfm2", "gemma3n_text", "bloom"], ("lfm2", "bloom").__contains__)
)
def test_what_cannot_be_repeated_is_recomputed(kind: str) -> None:
    lm = unusual(kind)
    assert can_repeat(lm.model) == (kind in {"gemma3n_text", "bloom"})
    part = Liked(2, Blocks(tokens=3))
    found = find(often_ending(lm), part)
    assert found == find(lm, part, use_cache=False)
    assert [r.ids for r in found[:2]] == [naive(lm, d, part, Steering()) for d in RAGGED[:2]]


def test_candidates_show_what_there_is(llama: LanguageModel) -> None:
    """States are those that the next token is drawn from; where there is none, that the last one was drawn from."""
    Liked.seen.clear()
    steering = edited(llama) + ENDS
    find(llama, Liked(3, Blocks(tokens=2), look=True), steering)
    prompts = {d[-1].text: llama.tokens(d).prompt for d in RAGGED}
    assert {finished for _, _, finished, _ in Liked.seen} == {True, False}
    for text, ids, finished, state in Liked.seen:
        tokens = Tokens(prompts[text], ids if finished else (*ids, 0))
        logits = dict(response_logits(llama, [tokens], edited(llama)))[0][-1]
        torch.testing.assert_close(llama.anatomy.head(state), logits, rtol=1e-4, atol=1e-4)


def test_the_cache_of_the_prompts_is_computed_once(llama: LanguageModel) -> None:
    shapes: list[tuple[int, ...]] = []
    handle = llama.model.register_forward_pre_hook(
        lambda m, a, k: shapes.append(tuple(k["input_ids"].shape)), with_kwargs=True
    )
    find(llama, Liked(4, Blocks(tokens=3)))
    handle.remove()
    width = max(len(llama.tokens(d).prompt) for d in RAGGED)
    assert shapes[0] == (len(RAGGED), width)
    assert all(columns == 1 and rows <= 4 * len(RAGGED) for rows, columns in shapes[1:])
    assert len(shapes) == 1 + 8, "nothing is computed behind the last token"


def test_finished_candidates_take_no_time(llama: LanguageModel) -> None:
    rows: list[int] = []
    handle = llama.model.register_forward_pre_hook(lambda m, a, k: rows.append(len(k["input_ids"])), with_kwargs=True)
    found = find(often_ending(llama), Liked(16))
    handle.remove()
    assert found == find(llama, Liked(16), batch_size=2, use_cache=False)
    assert rows[1] == 80
    assert rows == [rows[0], *sorted(rows[1:], reverse=True)]
    assert rows[-1] < 80
    assert len({len(r.ids) for r in found}) > 1


class Halves(Liked):
    """Goes on with the better half, until one is left."""

    def select(self, context: DecodingContext, rows: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        ranked = [sorted(range(len(row)), key=lambda i: -liking(row[i].response.ids)) for row in rows]
        return [order[: max(1, len(order) // 2)] for order in ranked]


def test_survivors_draw_on_as_they_began(llama: LanguageModel) -> None:
    """Whoever is left is one of the candidates that would have been drawn whole."""
    Liked.seen.clear()
    find(often_ending(llama), Liked(8))
    whole = {(text, ids) for text, ids, _, _ in Liked.seen}
    for d, response in zip(RAGGED, find(llama, Halves(8, Blocks(tokens=2))), strict=True):
        assert (d[-1].text, response.ids) in whole
        assert response.draws == (8,)


@pytest.mark.parametrize(("name", "draws"), [("one block", {3}), ("two tokens", {3}), ("redrawn", {1, 2, 3, 4, 5, 6})])
def test_draws_are_counted(llama: LanguageModel, name: str, draws: set[int]) -> None:
    found = find(llama, PARTS[name](), ENDS)
    assert {n for r in found for n in r.draws} <= draws
    if name == "two tokens":
        assert [len(r.draws) for r in found] == [-(-len(r.ids) // 2) for r in found]
    assert find(llama, Liked(1, Blocks(tokens=2)))[0].draws == ()


class Picky(Liked):
    def select(self, context: DecodingContext, rows: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        return [[] for _ in rows]


def test_a_part_that_keeps_nothing_has_to_say_so(llama: LanguageModel) -> None:
    with pytest.raises(ValueError, match="Picky keeps no candidate, and does not say that it redraws"):
        find(llama, Picky(2, Blocks(tokens=3)))


class Odd(Edit):
    """Keeps a state of which nobody knows what belongs to which row."""

    def __init__(self, state: str) -> None:
        super().__init__()
        self.state = state

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        return [1.0] * len(prompt) if self.state == "list" else torch.zeros(len(prompt) + 7, 1, 1)

    def forward(self, h: Tensor, state: Any) -> Tensor:
        return h


@pytest.mark.parametrize("state", ["list", "tensor"])
def test_a_state_that_cannot_follow_its_rows_is_refused(llama: LanguageModel, state: str) -> None:
    steering = Steering(edits=(PlacedEdit(Site("resid_post", 1), Odd(state)),))
    with pytest.raises(SteerbenchError, match="Odd keeps a state that cannot follow its rows"):
        find(llama, Liked(2), steering)


@pytest.mark.parametrize("settings", [{"tokens": 0}, {"least": 0}])
def test_blocks_have_tokens(settings: dict[str, int]) -> None:
    with pytest.raises(SteerbenchError, match="a block has 1 token or more"):
        Blocks(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("fits", mostly_slow([7, 3, 1], {7, 3}.__contains__))
def test_what_does_not_fit_is_drawn_in_parts(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
    """Prompts first, and then the candidates of one prompt."""
    expected = find(often_ending(llama), Liked(5))
    extend = Sequences.extend

    def scarce(self: Sequences, tokens: Tensor) -> None:
        if len(tokens) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        extend(self, tokens)

    monkeypatch.setattr(Sequences, "extend", scarce)
    with pytest.warns(UserWarning, match="the memory does not hold 5 sequences at once"):
        assert find(llama, Liked(5)) == expected


def test_blocks_need_room_for_all_candidates_of_a_prompt(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(self: Sequences, tokens: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Sequences, "extend", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        find(llama, Liked(5, Blocks(tokens=2)))


class LongPrompts(Gate):
    """Open where the state begins with a number above zero: a choice between prompts that nothing else makes."""

    def __init__(self) -> None:
        super().__init__()
        self.site, self.pool = "resid_post.0", "last_prompt"

    def opens(self, query: Tensor) -> Tensor:
        return query[:, 0] > 0


@pytest.mark.parametrize("blocks", [WHOLE, Blocks(tokens=3)])
@pytest.mark.parametrize("in_front", [False, True])
def test_gates_stay_with_their_prompts(llama: LanguageModel, blocks: Blocks, in_front: bool) -> None:
    vector = torch.linspace(-6, 6, tiny.WIDTH)
    edit: Edit = AddInFront(vector[None], 0) if in_front else Add(vector)
    gated = PlacedEdit(Site("resid_post", 1), edit, "all", gate=LongPrompts())
    opened = Steering(edits=(replace(gated, gate=None),), decode=Liked(3, blocks))
    steering = Steering(edits=(gated,), decode=Liked(3, blocks))
    wanted, unsteered, always = (
        [generate(llama, prompt, s, SAMPLED, reward=tiny.VowelReward())[0].ids for prompt in RAGGED]
        for s in (steering, Steering(decode=Liked(3, blocks)), opened)
    )
    together = generate(llama, RAGGED, steering, SAMPLED, reward=tiny.VowelReward())
    assert [r.ids for r in together] == wanted
    shut = [ids == plain for ids, plain in zip(wanted, unsteered, strict=True)]
    assert any(shut)
    assert any(ids == steered and not closed for ids, steered, closed in zip(wanted, always, shut, strict=True))
