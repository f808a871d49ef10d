"""The floor of decoding is the formula of docs/latency.md, worked out by hand for each kind of part."""

from typing import Any

import pytest
import torch
from torch import Tensor

from steerbench import LanguageModel, Steering, load
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Add, Blocks, DecodePart, Instruction, PlacedEdit, Reweighting, Site, Step, Twin
from steerbench.engine.floor import decode_floor
from steerbench.models.weights import weight_bytes

PROMPTS = [user("Hi"), user("How do I bake bread?")]
NEW = 10
COLUMN = 3 * 2 * 2 * 8 * 4
"""Bytes of keys and values of a column: layers, both, heads, width of a head, float32."""
TEXT = "Be brief."


class Guide(tiny.VowelReward):
    weight_bytes = 5000


class Tilt(Reweighting):
    """Reads whatever it is told to."""

    def __init__(self, table: Tensor, ahead: bool = False, text: str = "", guide: bool = False) -> None:
        self.table, self.ahead, self.text, self.guide, self.beta = table, ahead, text, guide, 1.0
        self.looks_ahead, self.asks_reward = ahead, guide

    @property
    def twin(self) -> Twin | None:
        return Twin(prompt=(Instruction(self.text),)) if self.text else None

    def score(self, step: Step, tokens: Tensor) -> Tensor:
        return torch.zeros(tokens.shape)


class Choice(DecodePart):
    def __init__(self, candidates: int, block: int | None = None, lookahead: int = 0) -> None:
        self.candidates, self.block, self.lookahead = candidates, block, lookahead

    @property
    def blocks(self) -> Blocks:
        return Blocks(tokens=self.block, lookahead=self.lookahead)


@pytest.fixture
def llama() -> LanguageModel:
    return tiny.language_model()


def columns(lm: LanguageModel, text: str = "") -> float:
    """Return the columns of both rows in the middle of decoding."""
    dialogues = [Instruction(text)(d) for d in PROMPTS]
    return sum(len(lm.tokens(d).prompt) for d in dialogues) + 2 * NEW / 2


def plain(lm: LanguageModel) -> float:
    """All weights but the rows of the embedding, and the cache."""
    weights: int = sum(p.numel() for p in lm.model.parameters()) - 259 * tiny.WIDTH
    return 4 * weights + COLUMN * columns(lm)


def part(name: str, **fields: Any) -> Steering:
    """Return the steering of a method that learns nothing."""
    method: Any = load("methods", name)
    steering: Steering = method(**fields).fit(None)
    return steering


def floor(lm: LanguageModel, steering: Steering) -> float:
    return decode_floor(lm, steering, PROMPTS, Guide(), NEW)


def test_the_floor_of_the_model_is_one(llama: LanguageModel) -> None:
    assert floor(llama, Steering()) == 1.0


def test_an_edit_moves_its_tensors(llama: LanguageModel) -> None:
    vector = PlacedEdit(Site("resid_post", 1), Add(torch.ones(tiny.WIDTH)))
    assert floor(llama, Steering(edits=(vector,))) == pytest.approx(1 + 4 * tiny.WIDTH / plain(llama))
    assert floor(llama, Steering(edits=(PlacedEdit(vector.site, vector.edit, "prompt"),))) == 1.0


def test_a_prompt_moves_its_cache(llama: LanguageModel) -> None:
    more = COLUMN * (columns(llama, TEXT) - columns(llama))
    assert more > 0
    assert floor(llama, Steering(prompt=(Instruction(TEXT),))) == pytest.approx(1 + more / plain(llama))


def test_a_second_model_of_the_same_size_is_twice(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerbench.engine.floor.loaded", lambda *_: tiny.language_model(seed=1))
    assert floor(llama, part("dexperts", expert="x")) == 2.0
    assert floor(llama, part("dexperts", expert="x", anti="y")) == 3.0
    assert floor(llama, part("dexperts", expert="x", alpha=0.0)) == 1.0
    assert floor(llama, part("nudging", guide="x")) == 1.0  # which may never ask


def test_re_weighting_moves_what_its_score_reads(llama: LanguageModel) -> None:
    base, table = plain(llama), torch.ones(7)
    for score, more in (
        (Tilt(table), 0),
        (Tilt(table, text=TEXT), COLUMN * columns(llama, TEXT)),
        (Tilt(table, ahead=True), base),
        (Tilt(table, guide=True), Guide.weight_bytes),
    ):
        assert floor(llama, Steering(logits=(score,))) == pytest.approx(1 + (28 + more) / base)
    prompted = Steering(prompt=(Instruction(TEXT),), logits=(Tilt(table, ahead=True),))
    longer = base + COLUMN * (columns(llama, TEXT) - columns(llama))
    assert floor(llama, prompted) == pytest.approx((2 * longer + 28) / base)


def test_candidates_share_all_but_their_block(llama: LanguageModel) -> None:
    base = plain(llama)
    for choice, own, drawn, asked in (
        (Choice(4), NEW, 1, 0),
        (Choice(4, block=4), 4, 1, 2),  # the first choice of three is in the time to the first token
        (Choice(3, block=2, lookahead=3), 5, 2.5, 4),
    ):
        step = base + COLUMN * 2 * (choice.candidates - 1) * own / 2
        expected = (drawn * step + asked / (NEW - 1) * Guide.weight_bytes) / base
        assert floor(llama, Steering(decode=choice)) == pytest.approx(expected)


@pytest.mark.parametrize("family", ["gpt2", "falcon", "gemma2"])
def test_a_head_that_is_the_embedding_is_read(family: str) -> None:
    model = tiny.language_model(family).model
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    tied = [m for m in tables if m.weight is model.get_output_embeddings().weight]
    unread = sum(m.weight.nbytes for m in tables if m not in tied)
    assert bool(tied) == (family != "gemma2")
    assert weight_bytes(model) == sum(p.nbytes for p in model.parameters()) - unread
