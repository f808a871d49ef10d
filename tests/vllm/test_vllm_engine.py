"""vLLM equals transformers: float32, greedy and drawn, ragged, every site and scope, with its cache and without."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from carried_steerings import CONSTANTS, NAMES, PROMPTS, carried, drawn

from steerbench import LanguageModel, SteerbenchError, Steering, generate
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.decoding import Decoding
from steerbench.edits import Add, DecodePart, Instruction, PlacedEdit, Site
from steerbench.engine.backends.shipment import Shipped, shipped_each
from steerbench.engine.backends.vllm_engine import VllmEngine
from steerbench.engine.generate import generate_fixed
from steerbench.engine.generate_each import generate_each
from steerbench.engine.timing import timed
from steerbench.learn import Tokens

NEW = Decoding(max_new_tokens=16)
DRAWN = Decoding(max_new_tokens=16, temperature=1.0, top_k=50, top_p=0.9)


@pytest.fixture(scope="module")
def steerings(lm: LanguageModel) -> dict[str, Steering]:
    return carried(lm, share=1.0)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_are_the_same(
    lm: LanguageModel, engine: VllmEngine, steerings: dict[str, Steering], name: str
) -> None:
    assert generate(lm, PROMPTS, steerings[name], NEW, engine=engine) == generate(lm, PROMPTS, steerings[name], NEW)


def test_every_constant_but_a_few_changes_what_is_said(lm: LanguageModel, steerings: dict[str, Steering]) -> None:
    """Or equal tokens would say nothing."""
    plain = generate(lm, PROMPTS, decoding=NEW)
    changed = [name for name in CONSTANTS if generate(lm, PROMPTS, steerings[name], NEW) != plain]
    assert len(changed) >= len(CONSTANTS) - 3, set(CONSTANTS) - set(changed)


@pytest.mark.parametrize("name", ["ascent", "gated", "resid_post, response"])
def test_draws_are_the_same(lm: LanguageModel, engine: VllmEngine, steerings: dict[str, Steering], name: str) -> None:
    for sample in (0, 1):
        given: dict[str, Any] = {"seed": 5, "sample": sample}
        wanted = generate(lm, PROMPTS, steerings[name], DRAWN, **given)
        assert generate(lm, PROMPTS, steerings[name], DRAWN, engine=engine, **given) == wanted


class Vowels(DecodePart):
    def __init__(self, candidates: int) -> None:
        self.candidates = candidates

    def choose(self, dialogue: Any, candidates: Sequence[str], reward: Any) -> int:
        return int(reward.score([dialogue] * len(candidates), candidates).argmax())


def test_candidates_that_share_a_prompt_and_the_choice_are_the_same(
    lm: LanguageModel, engine: VllmEngine, steerings: dict[str, Steering]
) -> None:
    long = [user(f"{PROMPTS[2][-1].text} " * 12)]
    steering = steerings["resid_post, response"] + Steering(decode=Vowels(4))
    given: dict[str, Any] = {"reward": tiny.VowelReward(), "seed": 2}
    wanted = generate(lm, [*PROMPTS, *long], steering, DRAWN, **given)
    found = generate(lm, [*PROMPTS, *long], steering, DRAWN, engine=engine, **given)
    assert found == wanted
    assert [r.draws for r in found] == [(4,)] * len(found)
    assert len(lm.tokens(long[0]).prompt) > 128, "a block of the cache, or nothing would be shared"


def test_a_prompt_part_is_applied_before(lm: LanguageModel, engine: VllmEngine, steerings: dict[str, Steering]) -> None:
    steering = Steering(prompt=(Instruction("Answer kindly."),)) + steerings["ascent"]
    assert generate(lm, PROMPTS, steering, NEW, engine=engine) == generate(lm, PROMPTS, steering, NEW)


@pytest.mark.parametrize("decoding", [NEW, DRAWN])
def test_several_steerings_in_one_batch(
    lm: LanguageModel, engine: VllmEngine, steerings: dict[str, Steering], decoding: Decoding
) -> None:
    names = ["resid_post, response", "resid_post, all", "mlp_out, all", "gated", "several", "ascent"]
    mixed = [Steering(), *(steerings[name] for name in names), Steering(prompt=(Instruction("Answer kindly."),))]
    found = generate_each(lm, PROMPTS, mixed, decoding, engine=engine)
    assert found == generate_each(lm, PROMPTS, mixed, decoding)
    assert generate(lm, PROMPTS, decoding=NEW, engine=engine) == generate(lm, PROMPTS, decoding=NEW)


def test_nothing_is_left_behind(lm: LanguageModel, engine: VllmEngine, steerings: dict[str, Steering]) -> None:
    plain = generate(lm, PROMPTS, decoding=NEW)
    for name in ("everywhere", "several", "gated"):
        generate(lm, PROMPTS, steerings[name], NEW, engine=engine)
        assert generate(lm, PROMPTS, decoding=NEW, engine=engine) == plain


def test_a_cached_prompt_is_not_taken_for_a_response(lm: LanguageModel, engine: VllmEngine) -> None:
    """A prompt that goes on where another's response ended: states that were edited there are not edited here."""
    site = Site("resid_post", 1)
    edits = [PlacedEdit(site, Add(drawn(site, lm, 1.0)), "response")]
    ids = lm.tokens(PROMPTS[2]).prompt
    first = Tokens((ids * 8)[:120])  # it ends within a block of the cache
    many = Decoding(max_new_tokens=40)
    (((*new,),),) = engine.continued(lm, [first], edits, many, [[0]], endless=True)
    second = Tokens((*first.prompt, *new))
    found = engine.continued(lm, [second], edits, NEW, [[0]])
    bare = VllmEngine("testbed", prefix_caching=False)
    try:
        assert bare.continued(lm, [first], edits, many, [[0]], endless=True) == [[new]]
        assert bare.continued(lm, [second], edits, NEW, [[0]]) == found
        unsteered = bare.continued(lm, [second], [], NEW, [[0]])
        whole = [replace(edits[0], scope="all")]
        assert bare.continued(lm, [second], whole, NEW, [[0]]) != found != unsteered
    finally:
        bare.close()


def test_a_fixed_number_of_tokens_and_its_time(
    lm: LanguageModel, engine: VllmEngine, steerings: dict[str, Steering], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_fixed(lm, PROMPTS[:2], steerings["ascent"], 9, engine=engine)
    found = engine.continued(lm, [lm.tokens(p) for p in PROMPTS], [], replace(NEW), [[0]] * len(PROMPTS), endless=True)
    assert [len(ids) for (ids,) in found] == [16] * len(PROMPTS)
    assert not {i for (ids,) in found for i in ids} & set(lm.end_ids)
    timing = timed(lm, PROMPTS[:1], steerings["ascent"], tiny.VowelReward(), 8, engine)
    assert 0 < timing.first < timing.all
    assert timing.peak > 100


def test_an_edit_without_numbers_is_named(lm: LanguageModel, engine: VllmEngine) -> None:
    wide = lm.model.config.hidden_size
    steering = Steering(edits=(PlacedEdit(Site("resid_post", 1), Add(torch.full((wide,), 3e38), 10.0)),))
    with pytest.raises(SteerbenchError, match=r"the edit Add at resid_post.1 gave NaN or infinite logits"):
        generate(lm, PROMPTS, steering, NEW, engine=engine)
    assert generate(lm, PROMPTS, decoding=NEW, engine=engine) == generate(lm, PROMPTS, decoding=NEW)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("model.layers.0.mlp", "does not compute what transformers does .* under an edit at mlp_out.3"),
        ("model.layers.3.mlp.act", "has no module model.layers.3.mlp.act"),
    ],
)
def test_another_module_than_transformers_has_is_found_out(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, path: str, said: str, engine: VllmEngine
) -> None:
    def elsewhere(*args: Any) -> list[Shipped]:
        return [replace(one, module=path) for one in shipped_each(*args)]

    monkeypatch.setattr("steerbench.engine.backends.vllm_engine.shipped_each", elsewhere)
    site = Site("mlp_out", 3)
    tried, engine._tried = engine._tried, set()
    try:
        with pytest.raises(SteerbenchError, match=said):
            generate(lm, PROMPTS, Steering(edits=(PlacedEdit(site, Add(drawn(site, lm, 0.1))),)), NEW, engine=engine)
    finally:
        engine._tried = tried
    monkeypatch.undo()
    assert generate(lm, PROMPTS, decoding=NEW, engine=engine) == generate(lm, PROMPTS, decoding=NEW)


def test_another_model_is_found_out() -> None:
    other = LanguageModel.load("testbed")
    with torch.no_grad():
        other.model.get_input_embeddings().weight.mul_(1.5)
    engine = VllmEngine("testbed")
    try:
        with pytest.raises(SteerbenchError, match=r"does not compute what transformers does .* without edits"):
            generate(other, PROMPTS, decoding=NEW, engine=engine)
    finally:
        engine.close()
