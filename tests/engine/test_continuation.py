"""Our own loop gives, token for token, what the model's own `generate` gives, and rows that have ended leave it."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from architectures import language_model as unusual
from thorough import mostly_slow
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from steerbench import Decoding, LanguageModel, Steering
from steerbench.contract import tiny
from steerbench.edits import Add, AddInFront, Edit, Gate, LogitsPart, PlacedEdit, Site
from steerbench.engine import continuation
from steerbench.engine.continuation import can_continue
from steerbench.engine.generate import _generate_batch
from steerbench.engine.install import steered
from steerbench.engine.positions import Positions
from steerbench.learn import Tokens
from steerbench.models.modes import generating
from steerbench.seeds import generator_for

PROMPTS = [(5,), (7, 8, 9, 10, 11), (20, 21), tuple(range(30, 52)), (60, 61, 62), (70,)]
NEW = 12
DECODINGS = {
    "greedy": Decoding(max_new_tokens=NEW),
    "sampled": Decoding(max_new_tokens=NEW, temperature=2.5, top_k=200, top_p=0.97),
}


@pytest.fixture(params=mostly_slow(sorted(tiny.FAMILIES), {"gemma2", "phi3"}.__contains__))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ending(family: str) -> LanguageModel:
    """A model that ends its responses early: every fifth token does."""
    lm = tiny.language_model(family)
    lm.end_ids = list(range(2, 259, 5))
    return lm


class Mean(Edit):
    """A state of each row, of tensors and a tuple."""

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        mean = (prompt * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        return (mean, torch.tensor(0.5))

    def forward(self, h: Tensor, state: Any) -> Tensor:
        edited: Tensor = h + state[1] * state[0]
        return edited


class Numbered(Mean):
    """A state that does not say which row is which."""

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        return [*super().start(prompt, mask), "of all rows"]


class Positive(Gate):
    """Opens for some of the prompts."""

    site, pool = "resid_post.0", "last_prompt"

    def opens(self, query: Tensor) -> Tensor:
        return query.sum(-1) > 0


def at(edit: Edit, layer: int = 1, scope: Any = "response", gate: Gate | None = None) -> PlacedEdit:
    return PlacedEdit(Site("resid_post", layer), edit, scope, gate)


VECTOR = torch.linspace(-1, 1, tiny.WIDTH)
STEERINGS = {
    "unsteered": Steering(),
    "constant": Steering(edits=(at(Add(VECTOR, 2.0)), PlacedEdit(Site("attn_out", 1), Add(VECTOR), "all"))),
    "state per row": Steering(edits=(at(Mean()), at(Add(VECTOR, 2.0), 0, gate=Positive()))),
    "state per position": Steering(edits=(at(AddInFront(VECTOR[None] * 3), scope="all"),)),
}


class Draw(LogitsProcessor):
    """Temperature, top-k and top-p as they are defined, and one number for each row and step."""

    def __init__(self, decoding: Decoding, rows: int) -> None:
        self.decoding, self.generators = decoding, generators(rows)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = [self.drawn(row, g) for row, g in zip(scores, self.generators, strict=True)]
        return torch.full_like(scores, -torch.inf).scatter(1, torch.tensor(chosen)[:, None], 0.0)

    def drawn(self, scores: Tensor, generator: torch.Generator) -> int:
        p = (scores / self.decoding.temperature).softmax(-1).double()
        order = p.argsort(descending=True)[: self.decoding.top_k]
        kept = p[order] / p[order].sum()
        kept = kept[kept.cumsum(0) - kept < self.decoding.top_p]
        allowed = torch.zeros_like(p).scatter(0, order[: len(kept)], kept).cumsum(0)
        number = torch.rand((), generator=generator, dtype=torch.float64) * allowed[-1]
        return int((allowed <= number).sum())


def generators(rows: int) -> list[torch.Generator]:
    return [generator_for(3, i) for i in range(rows)]


def oracle(
    lm: LanguageModel, prompts: Sequence[tuple[int, ...]], steering: Steering, decoding: Decoding
) -> list[list[int]]:
    """Return what the model's own `generate` makes of each prompt, cut behind its end token."""
    batch = lm.left_padded([Tokens(p) for p in prompts])
    more = [Draw(decoding, len(prompts))] if decoding.temperature else []
    positions = Positions(batch, lm.end_ids, cached=True)
    with (
        torch.no_grad(),
        generating(lm.model, lm.generation_config),
        steered(lm.model, lm.anatomy, steering.edits, positions),
    ):
        ids = lm.model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList(more),
        )
    return [cut(lm, row) for row in ids[:, batch.input_ids.shape[1] :].tolist()]


def cut(lm: LanguageModel, ids: list[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in lm.end_ids), len(ids))
    return ids[: end + 1]


@torch.no_grad()
def found(
    lm: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    steering: Steering,
    decoding: Decoding,
    *,
    use_cache: bool = True,
) -> list[list[int]]:
    batch = lm.left_padded([Tokens(p) for p in prompts])
    return _generate_batch(lm, batch, steering, decoding, generators(len(prompts)), use_cache)


CASES = mostly_slow(product(DECODINGS, STEERINGS), lambda case: case == ("greedy", "unsteered") or case[0] == "sampled")


@pytest.mark.parametrize(("how", "name"), CASES)
def test_the_loop_gives_what_generate_gives(ending: LanguageModel, how: str, name: str) -> None:
    assert can_continue(ending)
    new = found(ending, PROMPTS, STEERINGS[name], DECODINGS[how])
    assert new == oracle(ending, PROMPTS, STEERINGS[name], DECODINGS[how])
    assert new == found(ending, PROMPTS, STEERINGS[name], DECODINGS[how], use_cache=False)
    assert how == "greedy" or len({len(ids) for ids in new}) > 1  # rows leave, also where greedy ones never end


def widths(lm: LanguageModel, steering: Steering, decoding: Decoding) -> list[int]:
    """Return how many rows each pass has."""
    rows: list[int] = []
    handle = lm.model.register_forward_hook(
        lambda module, args, kwargs, out: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found(lm, PROMPTS, steering, decoding)
    handle.remove()
    return rows


def test_rows_that_have_ended_leave() -> None:
    """As soon as a quarter of those in the batch have; where something cannot follow, or reads the batch, they stay."""
    lm = tiny.language_model()
    lm.end_ids = list(range(2, 259, 5))
    decoding = DECODINGS["sampled"]
    lengths = [len(ids) for ids in found(lm, PROMPTS, Steering(), decoding)]
    expected, rows = [], len(PROMPTS)
    for step in range(max(lengths)):
        going_on = sum(n > step for n in lengths)
        rows = going_on if going_on <= 0.75 * rows else rows
        expected.append(rows)
    assert widths(lm, Steering(), decoding) == expected
    assert expected[-1] < len(PROMPTS)
    for steering in (Steering(edits=(at(Numbered()),)), Steering(logits=(Same(),))):
        assert set(widths(lm, steering, decoding)) == {len(PROMPTS)}
    known = Steering(edits=(at(Mean()),))
    assert found(lm, PROMPTS, Steering(edits=(at(Numbered()),)), decoding) == found(lm, PROMPTS, known, decoding)


class Same(LogitsPart, LogitsProcessor):
    """Changes nothing; sees what rows that have ended hold."""

    seen: list[Tensor] = []  # noqa: RUF012 - filled by a test

    def processor(self, lm: LanguageModel, prompt_ids: Tensor, mask: Tensor) -> LogitsProcessor:
        return self

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        Same.seen.append(input_ids)
        return scores


def test_rows_that_stay_are_padded_behind_their_end(ending: LanguageModel) -> None:
    Same.seen.clear()
    new = found(ending, PROMPTS, Steering(logits=(Same(),)), DECODINGS["sampled"])
    whole = Same.seen[-1][:, -(len(Same.seen) - 1) :].tolist()
    for ids, row in zip(new, whole, strict=True):
        assert row == (ids + [ending.pad_id] * len(row))[: len(row)]


def test_a_model_that_keeps_more_than_keys_and_values_is_continued_by_its_own() -> None:
    lm = unusual("lfm2")
    assert not can_continue(lm)
    for decoding in DECODINGS.values():
        new = found(lm, PROMPTS[:3], Steering(), decoding)
        assert [cut(lm, ids) for ids in new] == oracle(lm, PROMPTS[:3], Steering(), decoding)


def test_a_model_that_prepares_its_inputs_is_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phi-3 does, and passes; where the trial shows something else, its own `generate` is used."""
    lm = tiny.language_model("phi3")
    tried: list[str] = []
    original = continuation._agrees

    def agrees(lm: LanguageModel) -> bool:
        tried.append(lm.name)
        return original(lm)

    monkeypatch.setattr(continuation, "_agrees", agrees)
    assert can_continue(lm)
    assert can_continue(lm)
    assert can_continue(tiny.language_model("llama"))
    assert tried == ["tiny-phi3"]
    other = tiny.language_model("phi3")
    blind = nn.Module.register_forward_pre_hook(other.model, forgetful, with_kwargs=True)
    assert not can_continue(other)
    blind.remove()


def forgetful(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Read every column at position 0 wherever positions are given."""
    if kwargs.get("position_ids") is not None:
        kwargs = {**kwargs, "position_ids": torch.zeros_like(kwargs["position_ids"])}
    return args, kwargs
