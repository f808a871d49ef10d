"""CAA and its control, a random direction: against the formula written out naively, in every form of the pairs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from thorough import mostly_slow
from torch import Tensor

from steerbench import Decoding, Example, FitContext, LanguageModel, SteerbenchError, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import Dialogue, Turn, plain_text, user
from steerbench.edits import Add, Site
from steerbench.learn import Tokens, response_logits, self_generated

PROMPTS: list[Dialogue] = [user("How do I bake a cake?"), user("Hi"), (Turn("system", "Be brief."), *user("Why? 🎂"))]
EXAMPLES = [
    Example("0", "a", PROMPTS[0], "Happy to help you bake. Start small.", "No."),
    Example("1", "b", PROMPTS[1], "Hello, how are you today?", "What do you want from me now?"),
    Example("2", "c", PROMPTS[2], "Because it is.", "That is none of your business at all."),
]
GREEDY = Decoding(max_new_tokens=6)
SHORT = Decoding(max_new_tokens=8, temperature=1.0)
"""The model's own replies fit the context."""
TOKENS = [Tokens((5, 6, 7), (8, 9)), Tokens((10,), (11, 12, 13))]


def context(lm: LanguageModel, examples: list[Example] | None = None, **settings: Any) -> FitContext:
    return FitContext(lm=lm, examples=EXAMPLES if examples is None else examples, reward=tiny.VowelReward(), **settings)


def fit(lm: LanguageModel, name: str, *args: Any, **fields: Any) -> Steering:
    return load("methods", name)(**fields).fit(context(lm, *args))


def vector(steering: Steering) -> Tensor:
    (placed,) = steering.edits
    assert isinstance(placed.edit, Add)
    return placed.edit.vector


def logits(lm: LanguageModel, steering: Steering | None = None) -> list[Tensor]:
    found = dict(response_logits(lm, TOKENS, steering or Steering()))
    return [found[i] for i in range(len(TOKENS))]


def states(lm: LanguageModel, ids: list[int], layer: int) -> Tensor:
    """Return the block's output for some ids, alone and unpadded, (ids, width)."""
    with torch.no_grad():
        return lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]  # type: ignore[no-any-return]


def reply_states(lm: LanguageModel, prompt: str, reply: str, layer: int, pool: str) -> Tensor:
    ids, n = lm.tokenizer(prompt + reply)["input_ids"], len(lm.tokenizer(prompt)["input_ids"])
    hidden = states(lm, ids, layer)
    return hidden[-1] if pool == "last_response" else hidden[n:].mean(0)


def both_sides(lm: LanguageModel, pool: str, layer: int) -> tuple[Tensor, Tensor]:
    """Return the pooled states of the preferred and of the other replies, (pairs, width) each."""
    sides = ([e.chosen for e in EXAMPLES], [e.rejected for e in EXAMPLES])
    prompts = [plain_text(e.prompt) for e in EXAMPLES]
    good, bad = (
        torch.stack([reply_states(lm, p, " " + r, layer, pool) for p, r in zip(prompts, side, strict=True)])
        for side in sides
    )
    return good, bad


def naive_difference(lm: LanguageModel, pool: str, layer: int) -> Tensor:
    good, bad = both_sides(lm, pool, layer)
    return sum((g - b for g, b in zip(good, bad, strict=True)), torch.zeros_like(good[0])) / len(good)


@contextmanager
def added_to_block(lm: LanguageModel, layer: int, bias: Tensor, first: int = 0) -> Iterator[None]:
    """Add a vector to what a block returns, from a column of the batch on."""

    def shift(module: Any, args: Any, output: Any) -> Any:
        hidden = (output if isinstance(output, Tensor) else output[0]).clone()
        hidden[:, first:] += bias
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    handle = lm.anatomy.blocks[layer].register_forward_hook(shift)
    yield
    handle.remove()


# The formula


@pytest.mark.parametrize("pool", ["response_mean", "last_response"])
@pytest.mark.parametrize("layer", [0, None])
def test_is_the_mean_difference(lm: LanguageModel, pool: str, layer: int | None) -> None:
    steering = fit(lm, "caa", pool=pool, layer=layer)
    expected = naive_difference(lm, pool, 1 if layer is None else layer)
    torch.testing.assert_close(vector(steering), expected, rtol=1e-4, atol=1e-5)
    assert steering.edits[0].site == Site("resid_post", 1 if layer is None else layer)


def test_swapped_pairs_point_the_other_way(llama: LanguageModel) -> None:
    swapped = [Example(e.id, e.group, e.prompt, e.rejected, e.chosen) for e in EXAMPLES]
    torch.testing.assert_close(vector(fit(llama, "caa", swapped)), -vector(fit(llama, "caa")))


@pytest.mark.parametrize("pool", ["response_mean", "last_response"])
def test_padding_and_batches_do_not_move_the_vector(lm: LanguageModel, pool: str) -> None:
    method = load("methods", "caa")(pool=pool)  # type: ignore[call-arg]
    examples = tiny.examples()[:8]
    one, eight = (vector(method.fit(context(lm, examples, batch_size=size))) for size in (1, 8))
    torch.testing.assert_close(one, eight, rtol=1e-4, atol=1e-5)


def test_replies_are_read_up_to_the_token_limit(llama: LanguageModel) -> None:
    short = [
        Example(e.id, e.group, e.prompt, e.chosen[:6], e.rejected[:6]) for e in EXAMPLES[:2]
    ]  # bytes are tokens: a blank and six letters
    limited = load("methods", "caa")().fit(context(llama, EXAMPLES[:2], decoding=Decoding(max_new_tokens=7)))
    torch.testing.assert_close(vector(limited), vector(fit(llama, "caa", short)))


def test_layer_outside_the_model(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match=r"layer=3 is outside 0\.\.2"):
        fit(llama, "caa", layer=3)
    with pytest.raises(SteerbenchError, match=r"layer must be a whole number of 0 or more, or .*, not -1\."):
        fit(llama, "caa", layer=-1)


# Length


@pytest.mark.parametrize("pool", ["response_mean", "last_response"])
@pytest.mark.parametrize("share", [0.1, 2.0])
def test_relative_norm_is_a_share_of_the_mean_length_of_both_sides(
    llama: LanguageModel, pool: str, share: float
) -> None:
    lengths = [float(state.square().sum().sqrt()) for side in both_sides(llama, pool, 1) for state in side]
    plain = vector(fit(llama, "caa", pool=pool))
    scaled = vector(fit(llama, "caa", pool=pool, relative_norm=share))
    assert float(scaled.norm()) == pytest.approx(share * sum(lengths) / len(lengths), rel=1e-4)
    torch.testing.assert_close(scaled / scaled.norm(), plain / plain.norm())


def test_relative_norm_and_strength_multiply(llama: LanguageModel) -> None:
    together = logits(llama, fit(llama, "caa", relative_norm=0.2, strength=3.0))
    alone = logits(llama, fit(llama, "caa", relative_norm=0.6))
    for a, b, base in zip(together, alone, logits(llama), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(a, base, rtol=1e-2, atol=1e-2)


# Other pairs


def test_choices_are_read_at_the_letter(lm: LanguageModel) -> None:
    """A question by hand for each example; the preferred reply is (A) in the first, (B) in the second, and so on."""
    expected = torch.zeros(lm.model.config.hidden_size)
    for i, e in enumerate(EXAMPLES):
        first, second = (e.chosen, e.rejected) if i % 2 == 0 else (e.rejected, e.chosen)
        *before, last = e.prompt
        asked = Turn("user", f"{last.text}\n\nChoices:\n (A) {first}\n (B) {second}")
        text = plain_text((*before, asked))
        letter_of = {"A": first, "B": second}
        for letter, reply in letter_of.items():
            ids = lm.tokenizer(f"{text} ({letter}")["input_ids"]
            assert lm.tokenizer.decode(ids[-1:]) == letter
            expected += states(lm, ids, 1)[-1] * (1 if reply == e.chosen else -1) / len(EXAMPLES)
    found = vector(fit(lm, "caa", pairs="choices", pool="last_response"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_letters_of_choices_cancel(llama: LanguageModel) -> None:
    """Replies that are all alike leave nothing but the letter, and in an even number of questions not even that."""
    alike = [Example(str(i), str(i), user("Hi"), "Yes.", "Yes.") for i in range(4)]
    even = vector(fit(llama, "caa", alike, pairs="choices", pool="last_response"))
    odd = vector(fit(llama, "caa", alike[:3], pairs="choices", pool="last_response"))
    assert float(even.norm()) < 1e-4
    assert float(odd.norm()) > 1


def test_personas_are_read_at_the_end_of_the_prompt(lm: LanguageModel) -> None:
    expected = torch.zeros(lm.model.config.hidden_size)
    for e in EXAMPLES:
        *system, last = e.prompt
        opening = f"{system[0].text}\n\n" if system else ""
        for sign, persona in ((1, "You are a helpful assistant."), (-1, "Pretend you are a useless assistant.")):
            ids = lm.tokenizer(f"{opening}{persona}\n\nHuman: {last.text}\n\nAssistant:")["input_ids"]
            expected += sign * states(lm, ids, 1)[-1] / len(EXAMPLES)
    found = vector(fit(lm, "caa", pairs="personas", pool="last_prompt"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", mostly_slow(["response_mean", "last_response"], lambda pool: pool == "last_response"))
def test_own_replies_are_read_behind_the_plain_query(llama: LanguageModel, pool: str) -> None:
    shared = context(llama, tiny.examples()[:6], decoding=SHORT)
    found = vector(load("methods", "caa")(pairs="self_generated", pool=pool).fit(shared))  # type: ignore[call-arg]
    kept = self_generated(shared).kept
    assert len(kept) > 2
    expected = torch.zeros(llama.model.config.hidden_size)
    for generated in kept:
        query = llama.tokenizer(plain_text(generated.query))["input_ids"]
        for sign, answer in zip((1, -1), generated.answers, strict=True):
            hidden = states(llama, [*query, *answer.ids], 1)
            pooled = hidden[-1] if pool == "last_response" else hidden[len(query) :].mean(0)
            expected += sign * pooled / len(kept)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pairs": "personas", "pool": "last_response"}, "no reply for pool='last_response'; set pool=last_prompt"),
        ({"pairs": "personas"}, "no reply for pool='response_mean'; set pool=last_prompt"),
        ({"pool": "last_prompt"}, "both sides of pairs='preferences' are the same; set pool=last_response"),
        ({"pool": "last_prompt", "pairs": "choices"}, "both sides of pairs='choices' are the same"),
    ],
)
def test_pairs_and_pool_must_go_together(llama: LanguageModel, fields: Any, expected: str) -> None:
    with pytest.raises(SteerbenchError, match=expected):
        fit(llama, "caa", **fields)


# Steering


def test_at_all_positions_it_is_a_bias_of_the_block(lm: LanguageModel) -> None:
    steering = fit(lm, "caa", scope="all", strength=1.7)
    bias = 1.7 * naive_difference(lm, "response_mean", 1)
    steered, base, said = logits(lm, steering), logits(lm), generate(lm, PROMPTS, steering, GREEDY)
    with added_to_block(lm, 1, bias):
        biased, said_biased = logits(lm), generate(lm, PROMPTS, Steering(), GREEDY)
    for a, b, c in zip(steered, biased, base, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(a, c, rtol=1e-2, atol=1e-2)
    assert said == said_biased


def test_by_default_it_begins_at_the_last_prompt_position(llama: LanguageModel) -> None:
    steering = fit(llama, "caa", strength=2.0)
    bias = 2.0 * naive_difference(llama, "response_mean", 1)
    for tokens, steered in zip(TOKENS, logits(llama, steering), strict=True):
        first = len(tokens.prompt) - 1
        with added_to_block(llama, 1, bias, first), torch.no_grad():
            expected = llama.model(torch.tensor([tokens.prompt + tokens.response])).logits[0]
        torch.testing.assert_close(steered, expected[first:-1], rtol=1e-3, atol=1e-3)


# The control


@pytest.mark.parametrize("pool", ["response_mean", "last_response"])
@pytest.mark.parametrize("share", [None, 0.3])
def test_random_direction_has_the_length_of_caa_and_nothing_else(
    llama: LanguageModel, pool: str, share: float | None
) -> None:
    caa, control = (vector(fit(llama, name, pool=pool, relative_norm=share)) for name in ("caa", "random_direction"))
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
