"""The first methods against their formulas written out naively, and against each other."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from steerbench import (
    Decoding,
    Dialogue,
    Example,
    FitContext,
    LanguageModel,
    Reward,
    Site,
    SteerbenchError,
    Steerer,
    Steering,
    Tokens,
    Turn,
    generate,
    load,
    log_probs,
    user,
)
from steerbench.progress import Progress, silent

PROMPTS: list[Dialogue] = [user("How do I bake a cake?"), user("Hi"), (Turn("system", "Be brief."), *user("Why? 🎂"))]
EXAMPLES = [
    Example("0", "a", PROMPTS[0], "Happy to help you bake. Start small.", "No."),
    Example("1", "b", PROMPTS[1], "Hello, how are you today?", "What do you want from me now?"),
    Example("2", "c", PROMPTS[2], "Because it is.", "That is none of your business at all."),
]
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


def vector(steering: Steering) -> Tensor:
    (placed,) = steering.edits
    value = placed.edit.vector
    assert isinstance(value, Tensor)
    return value


def states(lm: LanguageModel, example: Example, reply: str, layer: int) -> tuple[Tensor, int]:
    """Return the block's output for prompt and reply, alone and unpadded, and the length of the prompt."""
    text = lm.format.text(example.prompt)
    prompt = lm.tokenizer(text)["input_ids"]
    whole = lm.tokenizer(text + " " + reply)["input_ids"]
    with torch.no_grad():
        hidden = lm.model(torch.tensor([whole]), output_hidden_states=True).hidden_states
    return hidden[layer + 1][0], len(prompt)


def naive_difference(lm: LanguageModel, pool: str, layer: int) -> Tensor:
    total = torch.zeros(lm.model.config.hidden_size)
    for example in EXAMPLES:
        for sign, reply in ((1, example.chosen), (-1, example.rejected)):
            hidden, n = states(lm, example, reply, layer)
            total += sign * (hidden[-1] if pool == "last_response" else hidden[n:].mean(0))
    return total / len(EXAMPLES)


@pytest.mark.parametrize("pool", ["response_mean", "last_response"])
@pytest.mark.parametrize("layer", [0, None])
def test_caa_is_the_mean_difference(lm: LanguageModel, pool: str, layer: int | None) -> None:
    steering = fit(lm, "caa", pool=pool, layer=layer)
    expected = naive_difference(lm, pool, 1 if layer is None else layer)
    torch.testing.assert_close(vector(steering), expected, rtol=1e-4, atol=1e-5)
    assert steering.edits[0].site == Site("resid_post", 1 if layer is None else layer)


def test_caa_of_swapped_pairs_points_the_other_way(llama: LanguageModel) -> None:
    swapped = [Example(e.id, e.group, e.prompt, e.rejected, e.chosen) for e in EXAMPLES]
    torch.testing.assert_close(vector(fit(llama, "caa", swapped)), -vector(fit(llama, "caa")))


def test_caa_at_all_positions_is_a_bias_of_the_block(lm: LanguageModel) -> None:
    steering = fit(lm, "caa", scope="all", strength=1.7)
    steered = log_probs(lm, TOKENS, steering)
    bias = 1.7 * naive_difference(lm, "response_mean", 1)

    def shift(module: Any, args: Any, output: Any) -> Any:
        return output + bias if isinstance(output, Tensor) else (output[0] + bias, *output[1:])

    base = log_probs(lm, TOKENS)
    handle = lm.anatomy.blocks[1].register_forward_hook(shift)
    biased = log_probs(lm, TOKENS)
    handle.remove()
    for a, b, c in zip(steered, biased, base, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(a, c, rtol=1e-2, atol=1e-2)


def test_replies_are_read_up_to_the_token_limit(llama: LanguageModel) -> None:
    short = [
        Example(e.id, e.group, e.prompt, e.chosen[:6], e.rejected[:6]) for e in EXAMPLES[:2]
    ]  # bytes are tokens: a blank and six letters
    limited = load("methods", "caa")().fit(context(llama, EXAMPLES[:2], decoding=Decoding(max_new_tokens=7)))
    torch.testing.assert_close(vector(limited), vector(fit(llama, "caa", short)))


@pytest.mark.parametrize("pool", ["response_mean", "last_response"])
def test_random_direction_has_the_length_of_caa_and_nothing_else(llama: LanguageModel, pool: str) -> None:
    caa, control = vector(fit(llama, "caa", pool=pool)), vector(fit(llama, "random_direction", pool=pool))
    torch.testing.assert_close(control.norm(), caa.norm())
    assert abs(torch.cosine_similarity(caa, control, dim=0)) < 0.6
    steering = fit(llama, "random_direction", strength=0.3, scope="all", layer=2)
    assert (str(steering.edits[0].site), steering.edits[0].scope) == ("resid_post.2", "all")


def test_random_direction_depends_on_the_seed_alone(llama: LanguageModel) -> None:
    method = load("methods", "random_direction")()
    torch.manual_seed(5)
    first = method.fit(context(llama, seed=1)).digest()
    torch.manual_seed(6)
    assert method.fit(context(llama, seed=1)).digest() == first
    assert method.fit(context(llama, seed=2)).digest() != first


@pytest.mark.parametrize("name", ["caa", "random_direction", "static_prompt", "unsteered"])
def test_fit_depends_on_no_batch_size_and_changes_nothing(llama: LanguageModel, name: str) -> None:
    before = {k: v.clone() for k, v in llama.model.state_dict().items()}
    method = load("methods", name)()
    results = [method.fit(context(llama, batch_size=size)) for size in (1, 2, 16)]
    for steering in results[1:]:
        for a, b in zip(results[0].edits, steering.edits, strict=True):
            torch.testing.assert_close(a.edit.vector, b.edit.vector)
    assert all(torch.equal(v, before[k]) for k, v in llama.model.state_dict().items())


@pytest.mark.parametrize("name", ["caa", "random_direction", "static_prompt"])
def test_off_is_the_unsteered_model(lm: LanguageModel, name: str) -> None:
    method = load("methods", name)
    off = method(**method.off).fit(context(lm))
    assert generate(lm, PROMPTS, off, GREEDY) == generate(lm, PROMPTS, decoding=GREEDY)
    assert all(torch.equal(a, b) for a, b in zip(log_probs(lm, TOKENS, off), log_probs(lm, TOKENS), strict=True))


@pytest.mark.parametrize("name", ["caa", "random_direction"])
def test_without_pairs_the_user_is_told(llama: LanguageModel, name: str) -> None:
    with pytest.raises(SteerbenchError, match="use more training examples"):
        fit(llama, name, [])


@pytest.mark.parametrize("layer", [-1, 3])
def test_layer_outside_the_model(llama: LanguageModel, layer: int) -> None:
    with pytest.raises(SteerbenchError, match=rf"layer={layer} is outside 0\.\.2"):
        fit(llama, "caa", layer=layer)


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


def test_every_pair_of_methods_composes(llama: LanguageModel) -> None:
    names = ("unsteered", "caa", "random_direction", "static_prompt")
    fitted = {name: fit(llama, name) for name in names}
    for a, b in itertools.product(names, names):
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


@pytest.mark.parametrize("name", ["caa", "random_direction", "static_prompt", "unsteered"])
def test_hyperparameters_are_frozen_and_checked(name: str) -> None:
    method = load("methods", name)
    assert issubclass(method, Steerer)
    with pytest.raises(TypeError, match="nonsense"):
        method(nonsense=1)  # type: ignore[call-arg]
    assert method() == method()
    assert set(method.off) <= set(method.__dataclass_fields__)
