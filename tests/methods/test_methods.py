"""What all methods have in common, how they compose, and the static prompt."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from steerbench import (
    Decoding,
    Example,
    FitContext,
    LanguageModel,
    Reward,
    SteerbenchError,
    Steerer,
    Steering,
    generate,
    load,
)
from steerbench.data import Dialogue, Turn, user
from steerbench.learn import Tokens, log_probs
from steerbench.progress import Progress, silent

PROMPTS: list[Dialogue] = [user("How do I bake a cake?"), user("Hi"), (Turn("system", "Be brief."), *user("Why? 🎂"))]
EXAMPLES = [
    Example("0", "a", PROMPTS[0], "Happy to help you bake. Start small.", "No."),
    Example("1", "b", PROMPTS[1], "Hello, how are you today?", "What do you want from me now?"),
    Example("2", "c", PROMPTS[2], "Because it is.", "That is none of your business at all."),
]
METHODS = ("ablation", "act_add", "caa", "random_direction", "repe", "shuffled_labels", "static_prompt", "unsteered")
GREEDY = Decoding(max_new_tokens=6)
TOKENS = [Tokens((5, 6, 7), (8, 9)), Tokens((10,), (11, 12, 13))]


class NoReward(Reward):
    name, revision = "none", "0"

    def score(self, dialogues: Any, responses: Any, progress: Progress = silent) -> Tensor:
        raise AssertionError("these methods need no reward")


def context(lm: LanguageModel, examples: list[Example] | None = None, **settings: Any) -> FitContext:
    return FitContext(lm=lm, examples=EXAMPLES if examples is None else examples, reward=NoReward(), **settings)


def fit(lm: LanguageModel, name: str, *args: Any, **fields: Any) -> Steering:
    return load("methods", name)(**fields).fit(context(lm, *args))


@pytest.mark.parametrize("name", METHODS)
def test_fit_depends_on_no_batch_size_and_changes_nothing(llama: LanguageModel, name: str) -> None:
    before = {k: v.clone() for k, v in llama.model.state_dict().items()}
    method = load("methods", name)()
    results = [method.fit(context(llama, batch_size=size)) for size in (1, 2, 16)]
    for steering in results[1:]:
        for a, b in zip(results[0].edits, steering.edits, strict=True):
            torch.testing.assert_close(dict(a.edit.named_buffers()), dict(b.edit.named_buffers()), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in llama.model.state_dict().items())


@pytest.mark.parametrize("name", [name for name in METHODS if name != "unsteered"])
def test_off_is_the_unsteered_model(lm: LanguageModel, name: str) -> None:
    method = load("methods", name)
    off = method(**method.off).fit(context(lm))
    assert generate(lm, PROMPTS, off, GREEDY) == generate(lm, PROMPTS, decoding=GREEDY)
    assert all(torch.equal(a, b) for a, b in zip(log_probs(lm, TOKENS, off), log_probs(lm, TOKENS), strict=True))


@pytest.mark.parametrize("name", ["ablation", "caa", "random_direction", "shuffled_labels"])
def test_without_pairs_the_user_is_told(llama: LanguageModel, name: str) -> None:
    with pytest.raises(SteerbenchError, match="use more training examples"):
        fit(llama, name, [])


def test_static_prompt_appears_exactly_once(llama: LanguageModel) -> None:
    steering = fit(llama, "static_prompt")
    text = load("methods", "static_prompt")().text  # type: ignore[attr-defined]
    for times, prompt in itertools.product((1, 2, 3), PROMPTS):
        joined = sum([steering] * times, Steering())
        seen = joined.apply_prompt(prompt)
        assert llama.format.text(seen).count(text) == 1
        assert seen[-1] == prompt[-1]
    assert steering.apply_prompt(PROMPTS[2])[0] == Turn("system", f"Be brief.\n\n{text}")


def test_another_static_prompt_is_added_behind(llama: LanguageModel) -> None:
    both = fit(llama, "static_prompt", text="One.") + fit(llama, "static_prompt", text="Two.")
    assert both.apply_prompt(user("Hi")) == (Turn("system", "One.\n\nTwo."), *user("Hi"))


def test_an_empty_static_prompt_leaves_the_tokens_alone(llama: LanguageModel) -> None:
    empty = fit(llama, "static_prompt", text="")
    for prompt in PROMPTS:
        assert llama.tokens(empty.apply_prompt(prompt)) == llama.tokens(prompt)


def test_static_prompt_changes_what_is_said(llama: LanguageModel) -> None:
    (first, second) = (generate(llama, PROMPTS, s, GREEDY) for s in (Steering(), fit(llama, "static_prompt")))
    assert first != second


def test_unsteered_is_the_empty_steering(llama: LanguageModel) -> None:
    assert fit(llama, "unsteered") == Steering()


@pytest.mark.slow
def test_every_pair_of_methods_composes(llama: LanguageModel) -> None:
    fitted = {name: fit(llama, name) for name in METHODS}
    for a, b in itertools.product(METHODS, METHODS):
        joined = fitted[a] + fitted[b]
        assert joined.edits == fitted[a].edits + fitted[b].edits
        assert joined.prompt == fitted[a].prompt + fitted[b].prompt
        assert len(generate(llama, PROMPTS, joined, GREEDY)) == len(PROMPTS)
    twice = fitted["caa"] + fitted["caa"]
    double = fit(llama, "caa", strength=2.0)
    for x, y in zip(log_probs(llama, TOKENS, twice), log_probs(llama, TOKENS, double), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_methods_share_their_activations(llama: LanguageModel) -> None:
    shared = context(llama)
    load("methods", "caa")().fit(shared)
    calls: list[int] = []
    llama.model.register_forward_pre_hook(lambda m, a: calls.append(1))
    load("methods", "random_direction")().fit(shared)
    load("methods", "caa")(strength=2.0).fit(shared)  # type: ignore[call-arg]
    assert calls == []


@pytest.mark.parametrize("name", METHODS)
def test_hyperparameters_are_frozen_and_checked(name: str) -> None:
    method = load("methods", name)
    assert issubclass(method, Steerer)
    with pytest.raises(TypeError, match="nonsense"):
        method(nonsense=1)  # type: ignore[call-arg]
    assert method() == method()
    assert set(method.off) <= set(method.__dataclass_fields__)
