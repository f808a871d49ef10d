"""What a gate costs in a decoding step: nothing where no row has it open, and one sum where the edit is a constant."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from steerbench import Decoding, LanguageModel, Steering, generate
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Add, Edit, Gate, PlacedEdit, Site
from steerbench.engine.install import steered
from steerbench.engine.positions import Positions
from steerbench.learn import activations

PROMPTS = [user(text) for text in ("Hi", "How do I bake a cake?", "x", "Why is it so?")]
SITE = Site("resid_post", 1)
VECTOR = torch.linspace(-2, 2, tiny.WIDTH)


class Above(Gate):
    site, pool = "resid_post.0", "last_prompt"

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def opens(self, query: Tensor) -> Tensor:
        return query.sum(-1) > self.threshold


class Counted(Add):
    """The same sum, and how often it was asked for."""

    calls: list[int] = []  # noqa: RUF012 - emptied by the tests

    def forward(self, h: Tensor, state: Any) -> Tensor:
        self.calls.append(h.shape[1])
        return super().forward(h, state)

    def constant(self) -> Tensor:
        return self.strength * self.vector


class Hidden(Counted):
    """The same, but does not say that it is a constant."""

    constant = Edit.constant  # type: ignore[assignment]


def thresholds(lm: LanguageModel) -> dict[str, float]:
    sums = [
        float(h.sum()) for h in activations(lm, Site("resid_post", 0), [lm.tokens(p) for p in PROMPTS], "last_prompt")
    ]
    return {"no row": max(sums) + 1, "half of the rows": sum(sorted(sums)[1:3]) / 2, "every row": min(sums) - 1}


def behind(lm: LanguageModel, opened: str, edit: Edit) -> Steering:
    return Steering(edits=(PlacedEdit(SITE, edit, "response", Above(thresholds(lm)[opened])),))


def drawn(lm: LanguageModel, steering: Steering, **how: Any) -> Sequence[object]:
    return generate(lm, PROMPTS, steering, Decoding(max_new_tokens=8, temperature=1.0), **how)


@pytest.mark.parametrize("opened", ["no row", "half of the rows", "every row"])
def test_steps_add_a_constant_to_the_rows_that_are_open(llama: LanguageModel, opened: str) -> None:
    llama.end_ids = list(range(2, 259, 9))  # rows leave, and the constant follows them
    Counted.calls.clear()
    found = drawn(llama, behind(llama, opened, Counted(VECTOR)))
    assert (Counted.calls == []) == (opened == "no row")
    assert found == drawn(llama, behind(llama, opened, Counted(VECTOR)), batch_size=1)
    assert found == drawn(llama, behind(llama, opened, Hidden(VECTOR)))
    open_to_all = [drawn(llama, Steering(edits=(PlacedEdit(SITE, Add(VECTOR), "response"),))), drawn(llama, Steering())]
    for row, (yes, no) in zip(found, zip(*open_to_all, strict=True), strict=True):
        assert row in {"no row": [no], "every row": [yes]}.get(opened, [yes, no])


def test_where_no_row_ends_the_edit_itself_runs_over_the_prompts_alone(llama: LanguageModel) -> None:
    llama.end_ids = []
    Counted.calls.clear()
    drawn(llama, behind(llama, "half of the rows", Counted(VECTOR)))
    assert len(Counted.calls) == 1


def test_a_row_whose_gate_is_closed_keeps_every_bit(llama: LanguageModel) -> None:
    batch = llama.left_padded([llama.tokens(p) for p in PROMPTS])
    (placed,) = behind(llama, "half of the rows", Counted(VECTOR)).edits

    def steps(edits: Sequence[PlacedEdit]) -> Tensor:
        positions = Positions(batch, [], cached=True)
        with torch.no_grad(), steered(llama.model, llama.anatomy, edits, positions):
            out = llama.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=True)
            mask = torch.cat([batch.attention_mask, torch.ones(len(PROMPTS), 1)], dim=1).long()
            ids = torch.full((len(PROMPTS), 1), 40)
            logits: Tensor = llama.model(input_ids=ids, attention_mask=mask, past_key_values=out.past_key_values).logits
            return logits[:, -1]

    gated, plain = steps([placed]), steps([])
    same = (gated == plain).all(-1)
    assert same.sum() == 2
