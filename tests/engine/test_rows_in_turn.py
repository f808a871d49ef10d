"""Rows that wait take the places of those that have ended, and each response is the one that its prompt has alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from architectures import language_model as unusual
from scarce_memory import ERRORS
from thorough import mostly_slow
from torch import Tensor, nn

from steerbench import Decoding, LanguageModel, Steering, generate
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Add, AddInFront, Edit, Gate, LogitsPart, PlacedEdit, RankedEdit, Reweighting, Site, Step
from steerbench.engine import generate as engine
from steerbench.engine.continuation import can_take_turns
from steerbench.engine.generate import Draws
from steerbench.engine.sequences import Sequences

TEXTS = (
    "a",
    "",
    "How do I bake a loaf of bread?",
    "Hi there",
    "Why?",
    "Tell me more, please.",
    "No",
    "And then",
    "So?",
)
PROMPTS = [user(text) for text in TEXTS]
DECODINGS = {
    "greedy": Decoding(max_new_tokens=9),
    "sampled": Decoding(max_new_tokens=9, temperature=2.0, top_k=200, top_p=0.97),
}
VECTOR = torch.linspace(-1, 1, tiny.WIDTH)


class Mean(Edit):
    """A state of each row, a tuple, with something that all rows share."""

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        mean = (prompt * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        return (mean, torch.tensor(0.5), torch.full((1, 1, 1), 0.1), None)

    def forward(self, h: Tensor, state: Any) -> Tensor:
        edited: Tensor = h + state[1] * state[0] + state[2]
        return edited


class Numbered(Mean):
    """A state that does not say which row is which."""

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        return [*super().start(prompt, mask)[:3], "of all rows"]


class Widest(Edit):
    """What it says all rows share differs between batches."""

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        return torch.tensor(float(mask.sum(1).max()))

    def forward(self, h: Tensor, state: Any) -> Tensor:
        edited: Tensor = h + 0 * state
        return edited


class Every(Gate):
    """Opens for about every other prompt."""

    site, pool = "resid_post.0", "prompt_mean"

    def __init__(self, other: int = 0) -> None:
        super().__init__()
        self.other = other

    def opens(self, query: Tensor) -> Tensor:
        return (query.sum(-1) * 20).floor().remainder(2).eq(self.other)


class Ranked(RankedEdit):
    """Two compete for each prompt."""

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.register_buffer("vector", vector)
        self.contest, self.keep = "mine", 1

    def score(self, query: Tensor) -> Tensor:
        return query @ self.get_buffer("vector")

    def begin(self, query: Tensor, chosen: Tensor) -> Any:
        return chosen[:, None, None] * self.get_buffer("vector")

    def forward(self, h: Tensor, state: Any) -> Tensor:
        edited: Tensor = h + 2 * state
        return edited


class Same(LogitsPart):
    """Changes nothing; knows the batch as it began."""

    def processor(self, lm: LanguageModel, prompt_ids: Tensor, mask: Tensor) -> Any:
        return lambda ids, scores: scores


class Guided(Reweighting):
    """Re-weights tokens by the states that they are drawn from."""

    top, beta, reads_states = 6, 1.0, True

    def score(self, step: Step, tokens: Tensor) -> Tensor:
        return step.states.mean(-1, keepdim=True) * tokens.remainder(7)


def at(edit: Edit, layer: int = 1, scope: Any = "response", gate: Gate | None = None) -> PlacedEdit:
    return PlacedEdit(Site("resid_post", layer), edit, scope, gate)


FOLDED = PlacedEdit(Site("attn_out", 1), Add(VECTOR), "all")
STEERINGS = {
    "unsteered": Steering(),
    "constant": Steering(edits=(at(Add(VECTOR, 2.0)), FOLDED)),
    "prompt": Steering(edits=(at(Add(VECTOR, 3.0), scope="prompt"),)),
    "state per row": Steering(edits=(at(Mean()), at(Mean(), 2, "all"), FOLDED)),
    "state per position": Steering(edits=(at(AddInFront(VECTOR[None] * 3), scope="all"),)),
    "gates": Steering(edits=(at(Add(VECTOR, 2.0), 0, gate=Every()), at(Mean(), gate=Every(1)))),
    "contest": Steering(edits=(at(Ranked(VECTOR), 0), at(Ranked(VECTOR.flip(0)), 1), at(Add(VECTOR, 0.1), 1))),
    "final": Steering(edits=(PlacedEdit(Site("final"), Mean()),)),
}
CANNOT = {
    "numbered": Steering(edits=(at(Numbered()),)),
    "of a batch": Steering(edits=(at(Widest()), at(Add(VECTOR)))),
    "logits": Steering(logits=(Same(),), edits=(at(Mean()),)),
    "guided": Steering(logits=(Guided(),), edits=(at(Mean()),)),
}


def ending(family: str = "llama") -> LanguageModel:
    """A model that ends its responses early: every fifth token does."""
    lm = tiny.language_model(family)
    lm.end_ids = list(range(2, 259, 5))
    return lm


@torch.no_grad()
def drawn(
    lm: LanguageModel, steering: Steering, decoding: Decoding, batch_size: int, **more: Any
) -> tuple[list[list[int]], list[Tensor]]:
    """Return ids, and the logits that each was drawn from, of each prompt."""
    seen: dict[int, list[Tensor]] = {}

    def observe(row: int, scores: Tensor) -> None:
        seen.setdefault(row, []).append(scores.clone())

    names = more.get("names", [("mine", 0)])
    draws = Draws(lm, steering, decoding, None, more.get("use_cache", True), names, observe)
    responses = draws.run(more.get("prompts", PROMPTS), batch_size)
    return [[*response.ids] for response in responses], [torch.stack(seen[i]) for i in range(len(responses))]


def alone(lm: LanguageModel, steering: Steering, decoding: Decoding, **more: Any) -> Any:
    """The oracle: each prompt in a batch of its own, in which nothing takes turns."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "can_take_turns", lambda lm: False)
        return drawn(lm, steering, decoding, 1, **more)


def passes(lm: LanguageModel, run: Callable[[], Any]) -> list[tuple[int, int]]:
    """Return rows and columns of each pass."""
    found: list[tuple[int, int]] = []

    def note(module: object, args: object, kwargs: dict[str, Tensor]) -> None:
        found.append((*kwargs["input_ids"].shape,))

    handle = lm.model.register_forward_pre_hook(note, with_kwargs=True)
    run()
    handle.remove()
    return found


def steps(found: list[tuple[int, int]]) -> int:
    """Return the rows of all passes that continue them by one token."""
    return sum(rows for rows, columns in found if columns == 1)


CASES = [(family, name, how) for family in sorted(tiny.FAMILIES) for name in STEERINGS for how in DECODINGS]


DEFAULT = {
    "llama": {"constant", "state per row", "gates"},
    "gpt2": {"contest", "prompt"},
    "gemma2": {"state per position"},
    "falcon": {"final"},
}
"""What runs by default, sampled."""


def by_default(case: tuple[str, str, str]) -> bool:
    family, name, how = case
    return how == "sampled" and name in DEFAULT.get(family, ())


@pytest.mark.parametrize(("family", "name", "how"), mostly_slow(CASES, by_default))
def test_each_row_is_as_it_is_alone(family: str, name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, steering, decoding = ending(family), STEERINGS[name], DECODINGS[how]
    expected, logits = alone(lm, steering, decoding)
    assert can_take_turns(lm)
    taken: list[int] = []
    replace = Sequences.replace

    def noting(self: Sequences, places: list[int], *rest: Any) -> None:
        taken.extend(places)
        replace(self, places, *rest)

    monkeypatch.setattr(Sequences, "replace", noting)
    for size in (1, 4):
        taken.clear()
        found, theirs = drawn(lm, steering, decoding, size)
        assert found == expected, size
        assert len(taken) == len(PROMPTS) - size
        for one, other in zip(theirs, logits, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert how == "greedy" or len(set(map(len, expected))) > 2


@pytest.mark.parametrize("name", mostly_slow(["constant", "state per row", "gates"], "gates".__eq__))
def test_nothing_needs_the_cache(name: str) -> None:
    lm, decoding = ending(), DECODINGS["sampled"]
    found, _ = drawn(lm, STEERINGS[name], decoding, 3, use_cache=False)
    assert found == alone(lm, STEERINGS[name], decoding)[0]


def test_places_are_taken_at_once() -> None:
    """All places work while any prompt waits: few steps are for rows that have ended."""
    lm, decoding = ending(), DECODINGS["sampled"]
    assert can_take_turns(lm)
    draw = partial(drawn, lm, Steering(), decoding, 8, names=[("mine", sample) for sample in range(4)])
    needed = sum(len(ids) - 1 for ids in draw()[0])  # the first token comes with the prompt
    turns = passes(lm, draw)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "can_take_turns", lambda lm: False)
        batches = passes(lm, draw)
    assert needed <= steps(turns) < steps(batches)
    assert steps(turns) <= 1.1 * needed
    assert sum(columns == 1 for _, columns in turns) < sum(columns == 1 for _, columns in batches)


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_take_turns_is_generated_batch_by_batch(name: str) -> None:
    lm, decoding = ending(), DECODINGS["sampled"]
    expected, _ = alone(lm, CANNOT[name], decoding)
    assert can_take_turns(lm)
    found: list[list[int]] = []
    seen = passes(lm, lambda: found.extend(drawn(lm, CANNOT[name], decoding, 4)[0]))
    assert found == expected
    begun = [rows for rows, columns in seen if columns > 1]
    assert begun.count(4) == 2
    assert len(begun) <= (3 if CANNOT[name].logits else 5)  # at most one in vain for each batch


def test_a_prompt_is_read_once_for_all_its_samples() -> None:
    lm, names = ending(), [("mine", sample) for sample in range(4)]
    prompts = PROMPTS[2:5]
    for steering in (STEERINGS["gates"], STEERINGS["state per position"], CANNOT["numbered"]):
        draw = partial(drawn, lm, steering, DECODINGS["sampled"], 16, names=names, prompts=prompts)
        expected, _ = alone(lm, steering, DECODINGS["sampled"], names=names, prompts=prompts)
        assert draw()[0] == expected
        assert len({tuple(ids) for ids in expected}) > len(prompts)
        read = sum(rows for rows, columns in passes(lm, draw) if columns > 1)
        # the gates' queries are a pass of their own; what does not say whose its values are cannot be copied
        assert read == 3 * (2 if steering is STEERINGS["gates"] else 4 if steering is CANNOT["numbered"] else 1)


def test_samples_that_wait_need_no_reading_of_their_prompt() -> None:
    lm, names = ending(), [("mine", sample) for sample in range(3)]
    for steering in (STEERINGS["state per row"],):
        draw = partial(drawn, lm, steering, DECODINGS["sampled"], 4, names=names)
        expected, _ = alone(lm, steering, DECODINGS["sampled"], names=names)
        assert can_take_turns(lm)
        assert draw()[0] == expected
        read = sum(rows for rows, columns in passes(lm, draw) if columns > 1)
        assert len(PROMPTS) <= read <= len(PROMPTS) + 1  # that of the first rows may be read again


def test_a_row_that_has_ended_goes_no_further_than_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place may be taken later; a table of positions ends with the context."""
    lm, names = ending("gpt2"), [("mine", sample) for sample in range(24)]
    monkeypatch.setattr("steerbench.engine.continuation.ROOM", 0.6)
    lm.end_ids = list(range(2, 259, 14))
    room = lm.context_length - 9
    prompts = [user("x" * (room - len(lm.tokens(user("")).prompt)))]
    assert len(lm.tokens(prompts[0]).prompt) == room
    expected, _ = alone(lm, Steering(), DECODINGS["sampled"], prompts=prompts, names=names)
    assert {9} < set(map(len, expected))
    assert drawn(lm, Steering(), DECODINGS["sampled"], 3, prompts=prompts, names=names)[0] == expected


@pytest.mark.parametrize("failing", mostly_slow([2, 6], (6).__eq__))
def test_memory_that_runs_out_on_the_way_loses_no_row(failing: int) -> None:
    lm, decoding = ending(), DECODINGS["sampled"]
    expected, _ = alone(lm, STEERINGS["gates"], decoding)
    count = iter(range(10**6))

    def fail(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if len(kwargs["input_ids"]) > 3 or next(count) == failing:
            raise ERRORS["torch"]()

    finished: list[int] = []

    class Bar:
        def __call__(self, *args: Any) -> Any:
            return self

        def __enter__(self) -> Any:
            return finished.append

        def __exit__(self, *args: object) -> None:
            pass

    assert can_take_turns(lm)
    handle = lm.model.register_forward_pre_hook(fail, with_kwargs=True)
    draws = Draws(lm, STEERINGS["gates"], decoding, None, True, [("mine", 0)])
    with pytest.warns(UserWarning, match="does not hold"):
        found = draws.run(PROMPTS, 6, Bar())  # type: ignore[arg-type]
    handle.remove()
    assert [[*response.ids] for response in found] == expected
    assert sum(finished) == len(PROMPTS)


@pytest.mark.parametrize("family", mostly_slow(sorted(tiny.FAMILIES), {"mistral", "opt"}.__contains__))
def test_every_family_can(family: str) -> None:
    assert can_take_turns(tiny.language_model(family))


def test_a_model_is_tried_out_first() -> None:
    other = tiny.language_model("gpt2")
    blind = nn.Module.register_forward_pre_hook(other.model, forgetful, with_kwargs=True)
    assert not can_take_turns(other)
    blind.remove()
    assert not can_take_turns(unusual("lfm2"))
    single = tiny.language_model()
    single.largest_batch = 1
    assert not can_take_turns(single)


def forgetful(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Count the columns of the cache as positions: right for rows without padding alone."""
    if kwargs.get("position_ids") is not None:
        width = kwargs["attention_mask"].shape[1]
        columns = torch.arange(width)[None, -kwargs["input_ids"].shape[1] :].expand(kwargs["input_ids"].shape)
        kwargs = {**kwargs, "position_ids": columns}
    return args, kwargs


def test_each_prompt_has_its_own_numbers_and_place_in_the_result() -> None:
    """In the public function, for greedy and for sampled responses."""
    lm = ending()
    for decoding in DECODINGS.values():
        whole = generate(lm, PROMPTS, STEERINGS["gates"], decoding, seed=3)
        assert whole == generate(lm, PROMPTS, STEERINGS["gates"], decoding, seed=3, batch_size=2)
        assert whole[::-1] == generate(lm, PROMPTS[::-1], STEERINGS["gates"], decoding, seed=3, batch_size=3)
    assert generate(lm, []) == []


def test_the_model_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = ending()
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()]
    drawn(lm, STEERINGS["state per row"], DECODINGS["sampled"], 2)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()] == hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())
