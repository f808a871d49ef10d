"""Re-weighting of tokens: what a step shows, in decoding and for a given response, against full recomputation."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from thorough import mostly_slow
from torch import Tensor
from transformers import LogitsProcessor

from steerbench import Decoding, LanguageModel, SteerbenchError, Steering, generate
from steerbench.contract import tiny
from steerbench.contract.case import close
from steerbench.data import user
from steerbench.edits import Add, DecodingContext, LogitsPart, PlacedEdit, PromptPart, Reweighting, Site, Step, Twin
from steerbench.engine import branches
from steerbench.engine.branches import can_branch
from steerbench.learn import Tokens, activations, response_logits

RAGGED = [user("Hi"), user("How do I bake a cake, and what do I need for it?"), user("x")]
SAMPLED = Decoding(max_new_tokens=5, temperature=1.0)
FINAL = Site("final")
VECTOR = torch.linspace(-3, 3, 32)
EDITS = {
    "nothing": (),
    "hook": (PlacedEdit(Site("resid_post", 1), Add(VECTOR), "response"),),
    "folded": (PlacedEdit(Site("z", 1), Add(VECTOR[:16].repeat(2)), "all"),),
    "prompt": (PlacedEdit(Site("resid_post", 0), Add(VECTOR), "prompt"), PlacedEdit(FINAL, Add(VECTOR), "response")),
}


class Looks(Reweighting):
    """Scores by the states here and ahead, and keeps what it saw."""

    reads_states = True
    seen: ClassVar[list[tuple[Tensor, Tensor, Tensor]]] = []

    def __init__(self, beta: float, top: int) -> None:
        self.beta, self.top = beta, top

    def score(self, step: Step, tokens: Tensor) -> Tensor:
        here, ahead = step.states, step.ahead(tokens)
        self.seen.append((here, tokens, ahead))
        return (ahead - here[:, None]).mean(-1) * 10


class OneByOne(LogitsPart):
    """The same part as a processor that is no re-weighting to the engine: scored prefix by prefix."""

    def __init__(self, part: Reweighting) -> None:
        self.part = part

    @property
    def models(self) -> Mapping[str, str]:
        return self.part.models

    @property
    def twin(self) -> Twin | None:
        return self.part.twin

    def processor_in(self, context: DecodingContext) -> LogitsProcessor:
        return self.part.processor_in(context)


def scored(lm: LanguageModel, steering: Steering, tokens: list[Tokens]) -> list[Tensor]:
    found = dict(response_logits(lm, tokens, steering, dialogues=RAGGED, reward=tiny.VowelReward()))
    return [found[i] for i in range(len(tokens))]


def given(lm: LanguageModel) -> list[Tokens]:
    last = [70, 70, lm.end_ids[0]]
    return [Tokens(lm.tokens(d).prompt, (40 + i, 50, 60, last[i])) for i, d in enumerate(RAGGED)]


@pytest.mark.parametrize("kind", EDITS)
def test_a_response_at_once_is_its_prefixes_one_by_one(llama: LanguageModel, kind: str) -> None:
    part = Looks(0.7, 3)
    at_once = scored(llama, Steering(edits=EDITS[kind], logits=(part,)), given(llama))
    alone = scored(llama, Steering(edits=EDITS[kind], logits=(OneByOne(part),)), given(llama))
    assert close(at_once, alone)


def test_states_are_those_of_the_model(llama: LanguageModel) -> None:
    """Ahead, each of the candidates stands alone behind its prefix."""
    (tokens,) = given(llama)[:1]
    Looks.seen.clear()
    scored(llama, Steering(logits=(Looks(0.7, 3),)), [tokens])
    ((here, candidates, ahead),) = Looks.seen
    (expected,) = activations(llama, FINAL, [tokens], "all")
    first = len(tokens.prompt)
    assert close(here, expected[first - 1 : -1])
    for t, row in enumerate(candidates.tolist()):
        texts = [Tokens(tokens.prompt, (*tokens.response[:t], z)) for z in row]
        assert close(ahead[t], torch.stack(activations(llama, FINAL, texts, "last_response")))


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("branching", [True, False])
def test_batch_cache_and_branches_change_nothing(
    llama: LanguageModel, kind: str, branching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not branching:
        monkeypatch.setattr("steerbench.engine.steps.can_branch", lambda lm: False)
    steering = Steering(edits=EDITS[kind], logits=(Looks(0.7, 3),))
    together = generate(llama, RAGGED, steering, SAMPLED)
    assert together == generate(llama, RAGGED, steering, SAMPLED, batch_size=1)
    assert together == generate(llama, RAGGED, steering, SAMPLED, use_cache=False)
    assert together != generate(llama, RAGGED, Steering(edits=EDITS[kind]), SAMPLED)


def test_candidates_continue_the_cache_where_the_family_allows_it(lm: LanguageModel, family: str) -> None:
    """Families with windows begin anew; both ways give the same."""
    assert can_branch(lm) == (family not in {"mistral", "gemma2", "gpt_neo"})
    steering = Steering(logits=(Looks(0.7, 3),))
    Looks.seen.clear()
    greedy = generate(lm, RAGGED, steering, Decoding(max_new_tokens=4))
    decoded = torch.stack([ahead for _, _, ahead in Looks.seen], dim=1)
    (order,) = lm.batches([lm.tokens(d) for d in RAGGED], 16)
    for row, i in enumerate(order):
        Looks.seen.clear()
        scored(lm, steering, [Tokens(lm.tokens(RAGGED[i]).prompt, greedy[i].ids)])
        assert close(decoded[row][: len(greedy[i].ids)], Looks.seen[0][2])


def test_a_pass_that_others_use_is_tried_out_once(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_branch(llama)
    monkeypatch.setattr(branches, "_agrees", lambda lm: pytest.fail("tried out again"))
    assert can_branch(llama)


def test_beta_zero_asks_nothing(llama: LanguageModel) -> None:
    class Never(Looks):
        def score(self, step: Step, tokens: Tensor) -> Tensor:
            raise AssertionError

    assert generate(llama, RAGGED, Steering(logits=(Never(0.0, 3),)), SAMPLED) == generate(
        llama, RAGGED, Steering(), SAMPLED
    )


class Fixed(Reweighting):
    """Scores a token by its number."""

    def __init__(self, beta: float, top: int | None, only: bool) -> None:
        self.beta, self.top, self.only = beta, top, only

    def score(self, step: Step, tokens: Tensor) -> Tensor:
        return tokens.float() / 100


@pytest.mark.parametrize(("top", "only"), [(None, False), (4, False), (4, True)])
def test_the_formula(llama: LanguageModel, top: int | None, only: bool) -> None:
    base = scored(llama, Steering(), given(llama))
    found = scored(llama, Steering(logits=(Fixed(2.0, top, only),)), given(llama))
    for before, after in zip(base, found, strict=True):
        for p, q in zip(before.softmax(-1), after.softmax(-1), strict=True):
            chosen = range(len(p)) if top is None else p.argsort(descending=True)[:top].tolist()
            expected = torch.zeros_like(p) if only else p.clone()
            weights = torch.tensor([float(p[z]) * 2.718281828 ** (2 * z / 100) for z in chosen])
            total = 1.0 if only else float(p[list(chosen)].sum())
            expected[list(chosen)] = weights / weights.sum() * total
            torch.testing.assert_close(q, expected, rtol=1e-4, atol=1e-6)


# What reads along


class Bracket(PromptPart):
    def __call__(self, dialogue):  # type: ignore[no-untyped-def]
        return user(f"[{dialogue[-1].text}]")


class TwinGap(Reweighting):
    """The logits of a twin behind another prompt, or under other edits."""

    def __init__(self, beta: float, other: str) -> None:
        self.beta, self.other = beta, other

    @property
    def twin(self) -> Twin:
        return Twin((Bracket(),)) if self.other == "prompt" else Twin(edits=EDITS[self.other])

    def score(self, step: Step, tokens: Tensor) -> Tensor:
        return step.logits_of_twin()


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("other", mostly_slow(["prompt", "nothing", "hook"], "prompt".__eq__))
def test_a_twin_reads_the_same_response(llama: LanguageModel, kind: str, other: str) -> None:
    steering = Steering(edits=EDITS[kind], logits=(TwinGap(0.5, other),))
    together = generate(llama, RAGGED, steering, SAMPLED)
    assert together == generate(llama, RAGGED, steering, SAMPLED, batch_size=1)
    assert together == generate(llama, RAGGED, steering, SAMPLED, use_cache=False)
    tokens = given(llama)
    behind = [Tokens(llama.tokens(Bracket()(d)).prompt, t.response) for d, t in zip(RAGGED, tokens, strict=True)]
    theirs = Steering(edits=EDITS[kind if other == "prompt" else other])
    base, twin = (
        scored(llama, Steering(edits=EDITS[kind]), tokens),
        scored(llama, theirs, behind if other == "prompt" else tokens),
    )
    expected = [b + 0.5 * t for b, t in zip(base, twin, strict=True)]
    assert close(scored(llama, steering, tokens), expected)
    assert close(scored(llama, Steering(edits=EDITS[kind], logits=(OneByOne(TwinGap(0.5, other)),)), tokens), expected)
    greedy = generate(llama, RAGGED, steering, Decoding(max_new_tokens=4))
    own = [Tokens(t.prompt, r.ids) for t, r in zip(tokens, greedy, strict=True)]
    for row, response in zip(scored(llama, steering, own), greedy, strict=True):
        assert tuple(row.argmax(-1).tolist()) == response.ids


def test_a_twin_whose_prompt_does_not_fit_is_told_before_anything_is_drawn(llama: LanguageModel) -> None:
    steering = Steering(logits=(TwinGap(0.5, "prompt"),))
    longest, longer = (max(len(llama.tokens(d).prompt) for d in seen) for seen in (RAGGED, map(Bracket(), RAGGED)))
    new = llama.context_length - longest
    assert longer > longest
    with pytest.raises(SteerbenchError, match=f"a text of {longer} tokens and {new} new ones do not fit"):
        generate(llama, RAGGED, steering, Decoding(max_new_tokens=new))
    unasked = Steering(logits=(TwinGap(0.0, "prompt"),))  # at beta 0 nobody reads along
    assert len(generate(llama, RAGGED, unasked, Decoding(max_new_tokens=new))) == len(RAGGED)


class Guided(Reweighting):
    def __init__(self, name: str, beta: float) -> None:
        self.name, self.beta = name, beta

    @property
    def models(self):  # type: ignore[no-untyped-def]
        return {"guide": self.name}

    def score(self, step: Step, tokens: Tensor) -> Tensor:
        return step.logits_of("guide")


@pytest.mark.parametrize("kind", ["nothing", "hook"])
def test_another_model_reads_along(llama: LanguageModel, world: Path, kind: str) -> None:
    steering = Steering(edits=EDITS[kind], logits=(Guided(str(world / "lm"), 0.5),))
    together = generate(llama, RAGGED, steering, SAMPLED)
    assert together == generate(llama, RAGGED, steering, SAMPLED, batch_size=1)
    tokens = given(llama)
    base, plain = scored(llama, Steering(edits=EDITS[kind]), tokens), scored(llama, Steering(), tokens)
    assert close(scored(llama, steering, tokens), [b + 0.5 * p for b, p in zip(base, plain, strict=True)])
    alone = Steering(edits=EDITS[kind], logits=(OneByOne(steering.logits[0]),))  # type: ignore[arg-type]
    assert close(scored(llama, alone, tokens), scored(llama, steering, tokens))
