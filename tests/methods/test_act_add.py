"""ActAdd against its formula written out naively, and where it may touch nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tokenizers import processors
from torch import Tensor
from transformers import AutoModelForCausalLM

from steerbench import Decoding, FitContext, LanguageModel, SteerbenchError, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import Dialogue, plain_text, user
from steerbench.edits import AddInFront, Site
from steerbench.engine.logits import batch_logits
from steerbench.learn import Tokens, response_logits

PROMPTS: list[Dialogue] = [user("How do I bake a cake?"), user("Hi"), user("")]
GREEDY = Decoding(max_new_tokens=6)
LONG = "Love and kindness, flowers and songs"
"""More tokens than the shortest prompt has."""
TOKENS = [
    Tokens((5, 6, 7, 8, 9, 10, 11), (8, 9)),
    Tokens((10,), (11, 12, 13)),
    Tokens((20, 21), (22,)),
    Tokens((30, 31, 32, 33), (34, 35)),
]
"""One ends before the first position that is edited, and two before the last."""


def context(lm: LanguageModel) -> FitContext:
    return FitContext(lm=lm, examples=tiny.examples()[:2], reward=tiny.VowelReward())


def fit(lm: LanguageModel, **fields: Any) -> Steering:
    return load("methods", "act_add")(**fields).fit(context(lm))


def rows(steering: Steering) -> Tensor:
    """Return what is added, strength left out, (tokens, width)."""
    (placed,) = steering.edits
    assert isinstance(placed.edit, AddInFront)
    assert placed.scope == "prompt"
    return placed.edit.vectors


def logits(lm: LanguageModel, steering: Steering | None = None, **settings: Any) -> list[Tensor]:
    found = dict(response_logits(lm, TOKENS, steering or Steering(), **settings))
    return [found[i] for i in range(len(TOKENS))]


def block_input(lm: LanguageModel, layer: int, ids: Sequence[int]) -> Tensor:
    """Return what the block receives, (ids, width)."""
    with torch.no_grad():
        return lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]  # type: ignore[no-any-return]


def naive_rows(lm: LanguageModel, layer: int, positive: str, negative: str) -> Tensor:
    """Bytes are tokens: pad the text itself with blanks."""
    width = max(len(positive), len(negative))
    both = (lm.tokenizer(text.ljust(width))["input_ids"] for text in (positive, negative))
    good, bad = (block_input(lm, layer, ids) for ids in both)
    return good - bad


@contextmanager
def added(lm: LanguageModel, layer: int, shift: Tensor, first: int, prompt: int) -> Iterator[None]:
    """Add one row of `shift` after the other to what a block receives, from `first` on, up to the prompt's end."""

    def change(module: Any, args: Any) -> Any:
        hidden = args[0].clone()
        for k, row in enumerate(shift):
            if first + k < prompt:
                hidden[0, first + k] += row
        return (hidden, *args[1:])

    handle = lm.anatomy.blocks[layer].register_forward_pre_hook(change)
    yield
    handle.remove()


def naive_logits(lm: LanguageModel, tokens: Tokens, layer: int, shift: Tensor, first: int) -> Tensor:
    """Return the logits that the response is drawn from, one unpadded row at a time."""
    with added(lm, layer, shift, first, len(tokens.prompt)), torch.no_grad():
        out: Tensor = lm.model(torch.tensor([tokens.prompt + tokens.response])).logits[0]
    return out[len(tokens.prompt) - 1 : -1]


# The vectors


@pytest.mark.parametrize(
    ("positive", "negative"), [("Love", "Hate"), ("Happy", "Sad"), ("No", "Certainly"), ("a", " ")]
)
@pytest.mark.parametrize("layer", [0, 2])
def test_is_the_difference_of_two_padded_prompts(lm: LanguageModel, layer: int, positive: str, negative: str) -> None:
    steering = fit(lm, positive=positive, negative=negative, layer=layer)
    assert steering.edits[0].site == Site("resid_pre", layer)
    expected = naive_rows(lm, layer, positive, negative)
    assert len(expected) == max(len(positive), len(negative))
    torch.testing.assert_close(rows(steering), expected, rtol=1e-4, atol=1e-4)


def test_exchanged_prompts_turn_every_vector(llama: LanguageModel) -> None:
    there, back = (rows(fit(llama, positive=p, negative=n, layer=1)) for p, n in (("Love", "Envy"), ("Envy", "Love")))
    assert float(there.norm(dim=1).min()) > 0
    torch.testing.assert_close(there, -back)


def adding(lm: LanguageModel, form: str) -> LanguageModel:
    """Let the tokenizer put special tokens around a text."""
    special = [("<bos>", 1), ("<eos>", 2)]
    lm.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=special)
    return lm


@pytest.mark.parametrize("form", ["<bos> $A", "<bos> $A <eos>"])
def test_of_the_tokens_that_a_tokenizer_adds_the_first_is_kept(llama: LanguageModel, form: str) -> None:
    """Both prompts begin with it, and it sees nothing else: its difference is zero. An end token is left out."""
    kept = rows(fit(adding(llama, form), positive="Love", negative="Hat", layer=1))
    assert not kept[0].any()
    texts = (llama.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Love", "Hat "))
    good, bad = (block_input(llama, 1, [1, *ids]) for ids in texts)
    torch.testing.assert_close(kept, good - bad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("n", "layer"), [(1, 0), (3, 0), (8, 1), (12, 2), (48, 6)])
def test_the_layer_is_at_the_published_depth(n: int, layer: int) -> None:
    """6 of 48."""
    config = tiny.FAMILIES["llama"]()
    config.num_hidden_layers = n
    deep = LanguageModel(AutoModelForCausalLM.from_config(config), tiny.tokenizer())
    assert fit(deep).edits[0].site == Site("resid_pre", layer)


def test_published_strength_and_words(llama: LanguageModel) -> None:
    named = fit(llama, positive="Love", negative="Hate", strength=5.0, first=1, layer=0)
    assert fit(llama).digest() == named.digest()


# Steering


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("first", [0, 1, 3])
def test_each_row_is_added_to_its_position_of_each_prompt(lm: LanguageModel, layer: int, first: int) -> None:
    """Of ragged prompts in one batch, the shorter ones of which end before the last row, or before the first."""
    shift = 2 * naive_rows(lm, layer, "Love", "Hate")
    steered = logits(lm, fit(lm, strength=2.0, layer=layer, first=first))
    base = logits(lm)
    for tokens, found, plain in zip(TOKENS, steered, base, strict=True):
        expected = naive_logits(lm, tokens, layer, shift, first)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)
        if len(tokens.prompt) <= first:
            torch.testing.assert_close(found, plain)
        else:
            assert not torch.allclose(found, plain, rtol=1e-2, atol=1e-2)


def test_positions_outside_are_unchanged_at_that_layer(lm: LanguageModel) -> None:
    shift = 5 * naive_rows(lm, 1, "Love", "Hate")
    steering = fit(lm, layer=1, first=2)
    for tokens in TOKENS:
        seen: list[tuple[Site, Tensor, Tensor]] = []
        list(batch_logits(lm, [tokens], steering, lambda *row, seen=seen: seen.append(row)))
        ((site, before, after),) = seen
        assert site == Site("resid_pre", 1)
        end = min(len(tokens.prompt), 6)
        outside = [i for i in range(sum(map(len, tokens))) if not 2 <= i < end]
        assert torch.equal(before[0, outside], after[0, outside])
        torch.testing.assert_close((after - before)[0, 2:end], shift[: max(end - 2, 0)], rtol=1e-3, atol=1e-3)


def naive_greedy(lm: LanguageModel, prompt: Dialogue, layer: int, shift: Tensor, first: int) -> list[int]:
    """Draw token after token, each from a whole pass over all before it, of which the prompt alone is edited."""
    ids = lm.tokenizer(plain_text(prompt))["input_ids"]
    new: list[int] = []
    with added(lm, layer, shift, first, len(ids)), torch.no_grad():
        while len(new) < GREEDY.max_new_tokens and not set(new) & set(lm.end_ids):
            new.append(int(lm.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return [i for i in new if i not in lm.end_ids]


@pytest.mark.parametrize("layer", [0, 1])
def test_generation_edits_the_prompt_alone_and_batches_do_not_matter(lm: LanguageModel, layer: int) -> None:
    """Padding stands on the left there; the vectors reach behind the end of the shortest prompt."""
    assert len(plain_text(PROMPTS[2])) < 1 + len(LONG) < len(plain_text(PROMPTS[0]))
    steering = fit(lm, positive=LONG, layer=layer)
    shift = 5 * naive_rows(lm, layer, LONG, "Hate")
    together, alone = (generate(lm, PROMPTS, steering, GREEDY, batch_size=size) for size in (8, 1))
    assert together == alone == generate(lm, PROMPTS, steering, GREEDY, use_cache=False)
    for prompt, response in zip(PROMPTS, together, strict=True):
        expected = naive_greedy(lm, prompt, layer, shift, 1)
        assert list(response.ids) == list(lm.cut(expected).ids)
    assert together != generate(lm, PROMPTS, decoding=GREEDY)


def test_equal_prompts_change_nothing(lm: LanguageModel) -> None:
    steering = fit(lm, positive="Love", negative="Love", layer=1)
    assert not rows(steering).any()
    assert all(torch.equal(a, b) for a, b in zip(logits(lm, steering), logits(lm), strict=True))
    assert generate(lm, PROMPTS, steering, GREEDY) == generate(lm, PROMPTS, decoding=GREEDY)


def test_blanks_behind_a_prompt_are_its_padding(llama: LanguageModel) -> None:
    assert not rows(fit(llama, positive="Love   ", negative="Love", layer=1)).any()


def test_strength_multiplies_the_vectors(llama: LanguageModel) -> None:
    once, twice = fit(llama, layer=1, strength=2.0), fit(llama, layer=1, strength=4.0)
    for a, b in zip(logits(llama, once + once), logits(llama, twice), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# Mistakes


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"layer": 3}, r"layer=3 is outside 0\.\.2"),
        ({"layer": -1}, "layer must be a whole number of 0 or more, or "),
        ({"first": -1}, "first must be a whole number of 0 or more, not -1"),
        ({"positive": "Love" * 64}, None),
        ({"positive": "Love" * 65}, "260 tokens and 0 new ones do not fit the context of 256"),
    ],
)
@pytest.mark.filterwarnings("ignore:Token indices")
def test_mistakes_are_named(llama: LanguageModel, fields: dict[str, Any], expected: str | None) -> None:
    if expected is None:
        assert len(rows(fit(llama, **fields))) == 256
        return
    with pytest.raises(SteerbenchError, match=expected):
        fit(llama, **fields)
