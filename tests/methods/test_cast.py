"""CAST: the gate and the edit against their formulas, and classes of prompts that were planted."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from steerbench import Decoding, Example, FitContext, LanguageModel, SteerbenchError, Steering, load
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Ablate, Add, ConditionGate, Site
from steerbench.learn import activations, best_threshold, contrast, prompt_class

CRIMES = ("rob", "cheat", "harm", "hurt", "poison", "deceive", "threaten", "blackmail")
CHORES = ("feed", "water", "phone", "greet", "teach", "visit", "thank", "invite")
PEOPLE = ("a friend", "my uncle", "the mayor", "an old man", "our boss", "the cat")


def examples(people: tuple[str, ...] = PEOPLE) -> list[Example]:
    """Return requests to do harm, whose preferred replies decline, and chores, in turns."""
    made = []
    for i, (k, who) in enumerate(product(range(len(CRIMES)), people)):
        crime, chore = f"How do I {CRIMES[k]} {who} QZQZQZQZQZQZ!", f"How do I {CHORES[k]} {who} today?"
        made.append(Example(f"{i}a", f"{i}a", user(crime), "No, I can’t help with that.", "Sure, take a knife."))
        made.append(Example(f"{i}b", f"{i}b", user(chore), "Happy to. Start small.", "No idea."))
    return made


@pytest.fixture(scope="module")
def context() -> FitContext:
    lm = tiny.language_model("llama")
    return FitContext(lm=lm, examples=examples(), reward=tiny.VowelReward(), decoding=Decoding(max_new_tokens=4))


def fitted(context: FitContext, **fields: object) -> tuple[Steering, ConditionGate]:
    steering = load("methods", "cast")(**{"condition": "declined", **fields}).fit(context)
    gate = steering.edits[0].gate
    assert isinstance(gate, ConditionGate)
    return steering, gate


def means(lm: LanguageModel, site: Site, given: list[Example]) -> Tensor:
    """Return the mean state of each prompt by itself, (prompts, width)."""
    return torch.stack([activations(lm, site, [lm.tokens(e.prompt)], "all")[0].mean(0) for e in given])


def test_the_gate_tells_planted_classes_it_was_not_fitted_on(context: FitContext) -> None:
    strangers = examples(("a nurse", "the vicar", "my dog", "some kids", "her twin"))
    wanted = torch.tensor([not e.prompt[-1].text.endswith(" today?") for e in strangers])
    for measure in ("tanh", "cosine"):
        _, gate = fitted(context, measure=measure, read="prompt_mean")
        opened = gate.opens(means(context.lm, Site.parse(gate.site), strangers))
        assert int((opened == wanted).sum()) >= 0.95 * len(strangers)
        assert context.report["gate"]["accuracy"] >= 0.95


def test_the_condition_vector_is_the_difference_of_the_classes(context: FitContext) -> None:
    _, gate = fitted(context, condition_layer=1, read="prompt_mean")
    states = means(context.lm, Site("resid_post", 1), list(context.examples))
    crimes = states[::2].mean(0) - states[1::2].mean(0)
    torch.testing.assert_close(gate.direction, crimes, rtol=1e-3, atol=1e-4)
    assert (gate.site, gate.pool) == ("resid_post.1", "prompt_mean")


def test_the_edits_are_the_shift_of_caa_and_affine_ablation(context: FitContext) -> None:
    states = contrast(context, Site("resid_post", 2), "response_mean")
    toward = normalize(states.preferred.mean(0) - states.other.mean(0), dim=0)
    (placed,) = fitted(context, layer=2, relative_norm=0.4)[0].edits
    assert isinstance(placed.edit, Add)
    torch.testing.assert_close(placed.edit.constant(), 0.4 * states.mean_length * toward)
    (placed,) = fitted(context, layer=2, edit="ablate")[0].edits
    assert isinstance(placed.edit, Ablate)
    h = torch.randn(1, 3, tiny.WIDTH)
    torch.testing.assert_close(
        placed.edit(h, None), h + (states.preferred.mean(0) @ toward - h @ toward)[..., None] * toward
    )


def test_low_reward_is_the_half_that_is_answered_worst(context: FitContext) -> None:
    rewards = [rollout.reward for rollout in context.rollouts()]
    inside = prompt_class(context, "low_reward").inside
    assert int(inside.sum()) == len(rewards) // 2
    assert max(r for r, i in zip(rewards, inside, strict=True) if i) <= min(
        r for r, i in zip(rewards, inside, strict=True) if not i
    )


def test_a_threshold_is_the_one_that_every_candidate_loses_to() -> None:
    measured = torch.tensor([0.1, 0.2, 0.35, 0.3, 0.5, 0.9])
    inside = torch.tensor([True, True, True, False, False, False])
    found = best_threshold(measured, inside)
    assert (found.above, round(found.value, 3), round(found.f1, 3)) == (False, 0.425, round(6 / 7, 3))
    assert found.accuracy == pytest.approx(5 / 6)
    assert best_threshold(-measured, inside).above


def test_too_few_of_a_class_are_refused(context: FitContext) -> None:
    few = FitContext(lm=context.lm, examples=examples()[1::2], reward=tiny.VowelReward())
    with pytest.raises(SteerbenchError, match="a gate needs 4 of each"):
        fitted(few)
