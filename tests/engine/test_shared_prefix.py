"""What all prompts begin with is read once, and each response is the one that its prompt has alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from architectures import language_model as unusual
from scarce_memory import ERRORS
from state_edits import Bent, Mean
from thorough import mostly_slow
from torch import Tensor, nn

from steerbench import Decoding, LanguageModel, SteerbenchError, Steering, generate, steered
from steerbench.contract import tiny
from steerbench.data import Dialogue, Turn, user
from steerbench.edits import Add, AddInFront, Edit, Gate, Instruction, LogitsPart, PlacedEdit, RankedEdit, Site
from steerbench.engine.continuation import can_share, can_take_turns
from steerbench.engine.generate import Draws, generate_samples
from steerbench.engine.prompting import prompt_tokens
from steerbench.engine.shared_prefix import SharedPrefix, shared_ids
from steerbench.learn import Tokens

BEGINNING = Instruction("You are a helpful assistant, and you answer in one sentence.")
LONG = "How do I bake a loaf of bread, and what do I need for it, if it is to keep for a whole week or even for two?"
PROMPTS = [user(text) for text in ("a", "", LONG, "Hi there", "Why?", "Tell me more, please.", "No", "So?")]
GOING_ON = [
    user("Hello there, how are you?"),
    (Turn("user", "Hello there, how are you?"), Turn("assistant", "Fine."), Turn("user", "Good.")),
    (Turn("user", "Hello there, how are you?"), Turn("assistant", "Ill."), Turn("user", "Oh.")),
]
"""The first is the beginning of the others."""
DECODINGS = {
    "greedy": Decoding(max_new_tokens=9),
    "sampled": Decoding(max_new_tokens=9, temperature=2.0, top_k=200, top_p=0.97),
}
VECTOR = torch.linspace(-1, 1, tiny.WIDTH)


class Nothing(Edit):
    """No number."""

    def forward(self, h: Tensor, state: Any) -> Tensor:
        return h * torch.nan


class Every(Gate):
    """Opens for about every other prompt."""

    site, pool = "resid_post.0", "prompt_mean"

    def opens(self, query: Tensor) -> Tensor:
        return (query.sum(-1) * 20).floor().remainder(2).eq(0)


class Ranked(RankedEdit):
    """Competes with itself."""

    contest, keep = "mine", 1

    def score(self, query: Tensor) -> Tensor:
        return query.sum(-1)

    def begin(self, query: Tensor, chosen: Tensor) -> Any:
        return query[:, None]

    def forward(self, h: Tensor, state: Any) -> Tensor:
        edited: Tensor = h + state
        return edited


class Same(LogitsPart):
    """Changes nothing; might look at the prompts."""

    def processor(self, lm: LanguageModel, prompt_ids: Tensor, mask: Tensor) -> Any:
        return lambda ids, scores: scores


def at(edit: Edit, layer: int = 1, scope: Any = "response", gate: Gate | None = None) -> Steering:
    return Steering(prompt=(BEGINNING,), edits=(PlacedEdit(Site("resid_post", layer), edit, scope, gate),))


SHARING = {
    "unsteered": Steering(prompt=(BEGINNING,)),
    "constant": at(Add(VECTOR, 2.0)),
    "bent": at(Bent(), 0) + Steering(edits=(PlacedEdit(Site("final"), Add(VECTOR)),)),
    "heads": at(Bent()) + Steering(edits=(PlacedEdit(Site("z", 0), Bent()), PlacedEdit(Site("mlp_out", 2), Bent()))),
}
ALONE = {
    "all": at(Add(VECTOR, 2.0), scope="all"),
    "prompt": at(Bent(), scope="prompt"),
    "one of two": at(Bent()) + at(Bent(), 0, "all"),
    "folded": Steering(prompt=(BEGINNING,), edits=(PlacedEdit(Site("attn_out", 1), Add(VECTOR), "all"),)),
    "reading": at(Mean()),
    "state per position": at(AddInFront(VECTOR[None] * 3)),
    "gate": at(Bent(), gate=Every()),
    "contest": at(Ranked()),
    "logits": Steering(prompt=(BEGINNING,), logits=(Same(),)),
}


def ending(family: str = "llama") -> LanguageModel:
    """A model that ends its responses early: every ninth token does."""
    lm = tiny.language_model(family)
    lm.end_ids = list(range(2, 259, 9))
    return lm


@torch.no_grad()
def drawn(
    lm: LanguageModel, steering: Steering, decoding: Decoding, batch_size: int, prompts: list[Dialogue] = PROMPTS
) -> tuple[list[list[int]], list[Tensor]]:
    """Return ids, and the logits that each was drawn from, of each prompt."""
    seen: dict[int, list[Tensor]] = {}

    def observe(row: int, scores: Tensor) -> None:
        seen.setdefault(row, []).append(scores.clone())

    draws = Draws(lm, steering, decoding, None, True, [("mine", 0)], observe)
    responses = draws.run(prompts, batch_size)
    return [[*response.ids] for response in responses], [torch.stack(seen[i]) for i in range(len(responses))]


def alone(
    lm: LanguageModel, steering: Steering, decoding: Decoding, prompts: list[Dialogue] = PROMPTS
) -> tuple[list[list[int]], list[Tensor]]:
    """The oracle: each prompt in a call of its own, which shares nothing."""
    single = [drawn(lm, steering, decoding, 1, [prompt]) for prompt in prompts]
    return [ids for (ids,), _ in single], [logits for _, (logits,) in single]


@contextmanager
def reading(lm: LanguageModel) -> Iterator[list[tuple[int, int]]]:
    """Yield the shapes, (rows, columns), of what comes to the embedding in passes that read prompts."""
    seen: list[tuple[int, int]] = []

    def note(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        rows, columns = args[0].shape
        if columns > 1:
            seen.append((rows, columns))

    assert can_share(lm)  # tries out before anything is counted
    can_take_turns(lm)
    handle = lm.model.get_input_embeddings().register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def tokens(lm: LanguageModel, steering: Steering, prompts: list[Dialogue] = PROMPTS) -> list[Tokens]:
    return prompt_tokens(lm, steering, prompts, 16, 9)


def check(found: Any, expected: Any) -> None:
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)


CASES = mostly_slow(
    product(sorted(tiny.FAMILIES), DECODINGS, (1, 3, 8)),
    lambda case: case[0] in {"gemma2", "opt"} and (case[1], case[2]) in {("greedy", 3), ("sampled", 8)},
)


@pytest.mark.parametrize(("family", "how", "batch_size"), CASES)
def test_shared_equals_alone(family: str, how: str, batch_size: int) -> None:
    """One of the prompts is longer than the others by more than they share."""
    lm, steering, decoding = ending(family), SHARING["unsteered"], DECODINGS[how]
    expected = alone(lm, steering, decoding)
    with reading(lm) as shapes:
        check(drawn(lm, steering, decoding, batch_size), expected)
    lengths, shared = [len(t.prompt) for t in tokens(lm, steering)], shapes[0][1]
    assert shapes[0] == (1, len(shared_ids(steering, tokens(lm, steering))))
    assert max(lengths) - min(lengths) > shared
    assert len({*map(tuple, expected[0])}) > 1


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("name", SHARING)
def test_edits_of_the_response_leave_the_beginning_alone(name: str, batch_size: int) -> None:
    lm, decoding = ending(), DECODINGS["greedy"]
    expected = alone(lm, SHARING[name], decoding)
    with reading(lm) as shapes:
        check(drawn(lm, SHARING[name], decoding, batch_size), expected)
    assert shapes[0][0] == 1 < shapes[0][1] < min(len(t.prompt) for t in tokens(lm, SHARING[name]))
    assert name == "unsteered" or expected[0] != alone(lm, SHARING["unsteered"], decoding)[0]


@pytest.mark.parametrize("name", ALONE)
def test_what_touches_or_reads_prompts_reads_them_itself(name: str) -> None:
    lm, decoding = ending(), DECODINGS["greedy"]
    expected = alone(lm, ALONE[name], decoding)
    assert not shared_ids(ALONE[name], tokens(lm, ALONE[name]))
    with reading(lm) as shapes:
        check(drawn(lm, ALONE[name], decoding, 8), expected)
    assert {columns for _, columns in shapes} == {max(len(t.prompt) for t in tokens(lm, ALONE[name]))}


def test_a_pass_of_one_column_more_than_the_beginning_continues_it() -> None:
    """A model without a cache would begin again with such a pass."""
    lm, steering, decoding = ending(), SHARING["bent"], DECODINGS["greedy"]
    shared = len(shared_ids(steering, tokens(lm, steering)))
    more = 2 * shared + 1 - len(tokens(lm, steering, [user("")])[0].prompt)
    prompts = [user("x" * more), user("y" * (more - 3)), user("z"), user("")]
    with reading(lm) as shapes:
        check(drawn(lm, steering, decoding, 8, prompts), alone(lm, steering, decoding, prompts))
    assert shapes[:2] == [(1, shared), (4, shared + 1)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_prompt_that_is_the_beginning_of_the_others(batch_size: int) -> None:
    lm, steering = ending(), Steering()
    whole = tokens(lm, steering, GOING_ON)[0].prompt
    assert shared_ids(steering, tokens(lm, steering, GOING_ON)) == whole
    for decoding in DECODINGS.values():
        expected = alone(lm, steering, decoding, GOING_ON)
        check(drawn(lm, steering, decoding, batch_size, GOING_ON), expected)


def test_one_prompt_is_read_once_without_a_beginning() -> None:
    lm, steering, decoding = ending(), SHARING["unsteered"], DECODINGS["greedy"]
    for prompts in (PROMPTS[:1], PROMPTS[:1] * 4):
        with reading(lm) as shapes:
            found, _ = drawn(lm, steering, decoding, 8, prompts)
        assert found == alone(lm, steering, decoding, prompts)[0]
        assert shapes == [(1, len(tokens(lm, steering, prompts)[0].prompt))]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_beginning_is_read_once_for_all(batch_size: int) -> None:
    """Of prompts as long as each other nothing else is read twice, in batches and where they wait for a place."""
    lm, steering = ending(), SHARING["unsteered"]
    prompts = [user(text) for text in "abcdefghijk"]
    whole = tokens(lm, steering, prompts)
    length, shared = len(whole[0].prompt), len(shared_ids(steering, whole))
    for decoding, samples in product(DECODINGS.values(), (1, 2)):
        with reading(lm) as shapes:
            generate_samples(lm, prompts, steering, decoding, samples=samples, batch_size=batch_size)
        read = sum(rows * columns for rows, columns in shapes)
        again = read - shared - len(prompts) * (length - shared)
        assert again in ({0} if samples == 1 else {0, length - shared})  # the prompt of a first row may be read again
        assert shapes.count((1, shared)) == 1


def test_each_call_reads_its_own() -> None:
    lm, decoding = ending(), DECODINGS["sampled"]
    draws = Draws(lm, SHARING["unsteered"], decoding, None, True, [("mine", 0)])
    other = [user(f"{LONG} {text}") for text in ("a", "bc", "d")]
    for prompts in (PROMPTS, other, PROMPTS):
        expected = alone(lm, SHARING["unsteered"], decoding, prompts)[0]
        assert [[*response.ids] for response in draws.run(prompts, 4)] == expected


def test_without_a_cache_nothing_is_shared() -> None:
    lm, steering, decoding = ending(), SHARING["constant"], DECODINGS["sampled"]
    expected = generate(lm, PROMPTS, steering, decoding)
    with reading(lm) as shapes:
        assert generate(lm, PROMPTS, steering, decoding, use_cache=False) == expected
    assert shapes[0][0] == len(PROMPTS)


def test_what_pays() -> None:
    def shared(*prompts: str) -> int:
        return len(shared_ids(Steering(), [Tokens(tuple(map(ord, prompt))) for prompt in prompts]))

    long = "x" * 40
    assert shared() == shared(long) == shared(long, long) == 0
    assert shared(long + "a", long + "b", long) == shared(long + "a", long + "b", long + "c") == 40
    assert shared("x" * 16 + "a", "x" * 16 + "b", "x" * 16) == 16
    assert shared("x" * 15 + "a", "x" * 15 + "b", "x" * 15) == 0
    assert shared(long + "a" * 10, long + "b" * 10) == 40
    assert shared(long + "a" * 11, long + "b" * 10) == 0
    assert shared(*(long + c * 50 for c in "abcdefghi")) == 0
    assert shared(*(long + c * 45 for c in "abcdefghi"), "") == 0


@pytest.mark.parametrize("family", mostly_slow(sorted(tiny.FAMILIES), {"mistral", "gpt2"}.__contains__))
def test_every_family_can(family: str) -> None:
    assert can_share(tiny.language_model(family))


def behind_a_cache(kwargs: dict[str, Any]) -> bool:
    """Whether a pass of several columns goes on behind others."""
    mask, ids = kwargs.get("attention_mask"), kwargs["input_ids"]
    return mask is not None and mask.shape[1] > ids.shape[1] > 1


def beginning_again(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take all columns of such a pass for the first one."""
    return kwargs | ({"position_ids": kwargs["position_ids"] * 0} if behind_a_cache(kwargs) else {})


def refusing(kwargs: dict[str, Any]) -> dict[str, Any]:
    if behind_a_cache(kwargs):
        raise ValueError("one token at a time behind a cache")
    return kwargs


@pytest.mark.parametrize("given", [beginning_again, refusing])
def test_a_model_is_tried_out_first(given: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    lm, steering, decoding = ending("gpt2"), SHARING["unsteered"], DECODINGS["greedy"]
    expected = alone(lm, steering, decoding)
    own: Callable[..., Any] = lm.model.forward
    lm.model.forward = lambda **kwargs: own(**given(kwargs))
    assert can_take_turns(lm)
    assert not can_share(lm)
    check(drawn(lm, steering, decoding, 3), expected)


def test_models_that_cannot() -> None:
    assert not can_share(unusual("lfm2"))
    single = tiny.language_model()
    single.largest_batch = 1
    assert not can_share(single)


@pytest.mark.parametrize("failing", [0, 3])
def test_memory_that_runs_out_loses_no_row(failing: int) -> None:
    """In the pass that reads the beginning, too."""
    lm, steering, decoding = ending(), SHARING["unsteered"], DECODINGS["sampled"]
    expected = generate(lm, PROMPTS, steering, decoding, batch_size=1)
    assert can_share(lm)
    assert can_take_turns(lm)
    calls = iter(range(10**6))

    def fail(module: nn.Module, args: tuple[Tensor]) -> None:
        if len(args[0]) > 4 or next(calls) == failing:
            raise ERRORS["torch"]()

    handle = lm.model.get_input_embeddings().register_forward_pre_hook(fail)
    with pytest.warns(UserWarning, match="does not hold"):
        found = generate(lm, PROMPTS, steering, decoding, batch_size=6)
    handle.remove()
    assert found == expected


def test_what_is_no_number_is_told() -> None:
    with pytest.raises(SteerbenchError, match="Nothing"):
        generate(ending(), PROMPTS, at(Nothing()), DECODINGS["greedy"])


def test_a_model_in_training_mode_reads_in_evaluation_mode() -> None:
    lm, steering, decoding = ending("gpt2"), SHARING["unsteered"], DECODINGS["greedy"]
    expected = alone(lm, steering, decoding)
    assert lm.model.config.resid_pdrop > 0
    lm.model.train()
    check(drawn(lm, steering, decoding, 3), expected)
    assert all(module.training for module in lm.model.modules())


def test_nothing_is_shared_where_others_watch_the_passes() -> None:
    """The beginning would be a prompt to them, with a last position."""
    lm, steering, decoding = ending(), SHARING["unsteered"], DECODINGS["greedy"]
    bent = Steering(edits=SHARING["bent"].edits)
    expected = alone(lm, steering + bent, decoding)[0]
    assert can_share(lm)
    assert can_take_turns(lm)
    with steered(lm, bent):
        assert not can_share(lm)
        assert drawn(lm, steering, decoding, 1)[0] == expected


@torch.no_grad()
def test_columns_are_those_of_prompts_that_were_read_whole() -> None:
    """Where a prompt is; padding holds numbers, which are masked."""
    lm = tiny.language_model("falcon")
    beginning = tuple(range(10, 16))
    rows = [(*beginning, 3, 4, 5, 6, 7, 8, 9), (*beginning, 3), beginning, (*beginning, 9, 9)]
    batch = lm.left_padded([Tokens(row) for row in rows])
    cache = SharedPrefix(lm, beginning).in_front(batch)
    assert cache.get_seq_length() == len(beginning)
    for row, ids in enumerate(rows):
        padding = batch.input_ids.shape[1] - len(ids)
        whole = lm.model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
        for layer, other in zip(cache.layers, whole.layers, strict=True):
            assert torch.isfinite(layer.keys).all()
            assert torch.isfinite(layer.values).all()
            n = max(len(beginning) - padding, 0)
            torch.testing.assert_close(layer.keys[row, :, len(beginning) - n :], other.keys[0, :, :n])
            torch.testing.assert_close(layer.values[row, :, len(beginning) - n :], other.values[0, :, :n])
