"""Prompts that are kept are read once, and what is generated and compared behind them is what it is without."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from scarce_memory import ERRORS
from state_edits import Bent, Mean
from thorough import mostly_slow
from torch import Tensor, nn

from steerbench import Decoding, LanguageModel, Steering, generate, steered
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Add, Edit, Instruction, LogitsPart, PlacedEdit, Site
from steerbench.engine.continuation import can_share, can_take_turns
from steerbench.engine.effect import Effect, effect
from steerbench.engine.generate import generate_samples
from steerbench.engine.kept_beginnings import KeptBeginnings
from steerbench.engine.kept_prompts import KeptPrompts
from steerbench.engine.logits import log_probs
from steerbench.learn import Tokens
from steerbench.models.pieces import kept_size

PROMPTS = [user(text) for text in ("a", "", "How do I bake a loaf of bread, and what do I need?", "Why?", "So?", "a")]
SAMPLED = Decoding(max_new_tokens=9, temperature=2.0)
VECTOR = torch.linspace(-1, 1, tiny.WIDTH)


class Twice(LogitsPart):
    """Sharpens the distribution."""

    def processor(self, lm: LanguageModel, prompt_ids: Tensor, mask: Tensor) -> Any:
        return lambda ids, scores: scores * 2


def at(edit: Edit, layer: int = 1, scope: Any = "response") -> Steering:
    return Steering(edits=(PlacedEdit(Site("resid_post", layer), edit, scope),))


STEERINGS = {
    "unsteered": Steering(),
    "constant": at(Add(VECTOR, 2.0)),
    "bent": at(Bent(), 0) + Steering(edits=(PlacedEdit(Site("final"), Add(VECTOR), "response"),)),
    "prompt": at(Bent()) + Steering(prompt=(Instruction("Be brief."),)),
    "logits": at(Bent()) + Steering(logits=(Twice(),)),
    "all": at(Add(VECTOR, 2.0), scope="all"),
    "reading": at(Mean()),
}
LEAVING = {"unsteered", "constant", "bent", "prompt"}
CASES = mostly_slow(
    [(family, name) for family in sorted(tiny.FAMILIES) for name in STEERINGS], lambda case: case[0] in {"llama", "opt"}
)


def ending(family: str = "llama") -> LanguageModel:
    """A model that ends its responses early: every ninth token does."""
    lm = tiny.language_model(family)
    lm.end_ids = list(range(2, 259, 9))
    return lm


def compared(lm: LanguageModel, steering: Steering, kept: KeptPrompts | None, batch_size: int = 3) -> Effect:
    responses = generate(lm, PROMPTS, steering, SAMPLED)
    return effect(lm, PROMPTS, responses, steering, batch_size=batch_size, kept=kept)


@contextmanager
def reading(lm: LanguageModel) -> Iterator[list[tuple[int, int]]]:
    """Yield the shapes, (rows, columns), of what comes to the embedding."""
    seen: list[tuple[int, int]] = []

    def note(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        seen.append((args[0].shape[0], args[0].shape[1]))

    can_share(lm)  # tries out before anything is counted
    can_take_turns(lm)
    handle = lm.model.get_input_embeddings().register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize(("family", "name"), CASES)
def test_behind_kept_prompts_all_is_as_it_is_without(family: str, name: str) -> None:
    lm, steering = ending(family), STEERINGS[name]
    kept = KeptPrompts(lm)
    found, wanted = compared(lm, steering, kept), compared(lm, steering, None)
    torch.testing.assert_close(found.kl, wanted.kl, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.nll, wanted.nll, rtol=1e-4, atol=1e-5)
    assert found.report.keys() == wanted.report.keys()
    for site, norms in found.report.get("edit_norm", {}).items():
        assert norms == pytest.approx(wanted.report["edit_norm"][site], rel=1e-4)
    for decoding in (Decoding(max_new_tokens=9), SAMPLED):
        plain = generate(lm, PROMPTS, steering, decoding)
        assert [r.ids for r in generate(lm, PROMPTS, steering, decoding, kept=kept, batch_size=4)] == [
            r.ids for r in plain
        ]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_given_responses_are_as_likely_behind_kept_prompts(family: str, name: str) -> None:
    lm, steering = ending(family), STEERINGS[name]
    tokens = [lm.tokens(prompt, reply) for prompt in PROMPTS for reply in ("Knead it.", "No", "Why not?")]
    wanted = log_probs(lm, tokens, steering, batch_size=4)
    for kept in (KeptPrompts(lm), KeptPrompts(lm, limit=0)):
        found = log_probs(lm, tokens, steering, batch_size=5, kept=kept)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_prompt_is_read_once_for_all_its_given_responses() -> None:
    lm = ending()
    tokens = [lm.tokens(PROMPTS[2], reply) for reply in ("Knead it.", "No", "Why not?")]
    with reading(lm) as shapes:
        log_probs(lm, tokens, at(Bent()), kept=KeptPrompts(lm))
    assert shapes == [(1, len(tokens[0].prompt) - 1), (3, max(len(one.response) for one in tokens))]


def test_responses_of_several_samples_begin_behind_the_same_prompts() -> None:
    lm = ending()
    plain = generate_samples(lm, PROMPTS, STEERINGS["bent"], SAMPLED, samples=3, batch_size=4)
    found = generate_samples(lm, PROMPTS, STEERINGS["bent"], SAMPLED, samples=3, batch_size=4, kept=KeptPrompts(lm))
    assert [r.ids for r in found] == [r.ids for r in plain]


@pytest.mark.parametrize("name", STEERINGS)
def test_prompts_are_read_once_for_all_that_leave_them_alone(name: str) -> None:
    lm, steering = ending(), STEERINGS[name]
    kept = KeptPrompts(lm)
    before = lm.tokens(PROMPTS[2]).prompt
    longest = len(before) + (len("Be brief.") if name == "prompt" else 0)
    compared(lm, Steering(), kept)
    responses = generate(lm, PROMPTS, steering, SAMPLED, kept=kept)
    with reading(lm) as shapes:
        generate(lm, PROMPTS, steering, SAMPLED, kept=kept)
        effect(lm, PROMPTS, responses, steering, kept=kept)
    read_again = [columns for _, columns in shapes if columns >= longest]
    assert bool(read_again) == (name not in LEAVING), shapes


def test_what_is_kept_does_not_depend_on_what_it_is_kept_with() -> None:
    lm = tiny.language_model("llama")
    prompts = [lm.tokens(p).prompt for p in PROMPTS]
    together, one = KeptPrompts(lm), KeptPrompts(lm)
    assert together.ready(prompts)
    assert one.ready(prompts[2:3])
    batch = lm.left_padded([lm.tokens(PROMPTS[2])])
    for a, b in zip(together.in_front(batch).layers, one.in_front(batch).layers, strict=True):
        assert torch.equal(a.keys, b.keys)
        assert torch.equal(a.values, b.values)


def test_those_asked_for_last_are_kept_as_far_as_there_is_room() -> None:
    lm = tiny.language_model("llama")
    prompts = [(3,) * n for n in (4, 5, 6)]
    kept = KeptPrompts(lm, limit=9 * kept_size(lm.model))  # the last tokens are not kept
    assert not kept.ready(prompts)
    assert kept.ready(prompts[:2])
    with reading(lm) as shapes:
        assert kept.ready(prompts[:1])
        assert kept.ready(prompts[2:])  # in the place of the second
        assert kept.ready(prompts[:1])
        assert kept.ready(prompts[1:])
    assert [columns for _, columns in shapes] == [5, 4]


@pytest.mark.parametrize("error", ERRORS)
def test_where_the_memory_runs_out_nothing_is_kept(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = ending()
    kept, wanted = KeptPrompts(lm), compared(lm, STEERINGS["bent"], None)
    assert kept.ready([lm.tokens(PROMPTS[0]).prompt])

    def fail(*args: Any) -> Any:
        raise ERRORS[error]()

    monkeypatch.setattr(KeptBeginnings, "_read", fail)
    assert compared(lm, STEERINGS["bent"], kept) == wanted
    assert not kept.ready([lm.tokens(PROMPTS[0]).prompt])


def test_a_prompt_of_one_token_has_nothing_to_keep() -> None:
    lm = tiny.language_model("llama")
    kept = KeptPrompts(lm)
    assert kept.ready([(3,), (3, 4)])
    one, two = Tokens((3,)), Tokens((3, 4))
    assert not kept.in_front(lm.left_padded([one])).get_seq_length()
    for layer in kept.in_front(lm.left_padded([one, two])).layers:
        assert layer.keys.shape[2] == 1
        assert not layer.keys[0].any()
        assert layer.keys[1].any()


def test_nothing_is_kept_of_a_model_that_others_steer() -> None:
    """Their passes would take it for a prompt."""
    lm = tiny.language_model("llama")
    with steered(lm.model, STEERINGS["constant"]):
        assert not KeptPrompts(lm).ready([(3, 4)])


def test_nothing_is_kept_where_positions_depend_on_the_length_of_the_text() -> None:
    """Keys of a short text would be old in a longer one."""
    lm = tiny.language_model("llama")
    assert KeptPrompts(lm).ready([(3, 4)])
    lm.model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    assert not KeptPrompts(lm).ready([(3, 4)])


def test_more_probabilities_than_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = ending()
    wanted = compared(lm, STEERINGS["bent"], None)
    monkeypatch.setattr("steerbench.engine.effect.AT_ONCE", 1)
    assert compared(lm, STEERINGS["bent"], None) == wanted
