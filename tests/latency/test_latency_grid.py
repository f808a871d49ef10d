"""The timed grid: what is timed, in which order, on which prompts, the arithmetic. No test waits for a clock."""

import itertools
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from thorough import mostly_slow
from torch import Tensor

from steerbench import LanguageModel, SteerbenchError, Steering
from steerbench.contract.tiny import VowelReward
from steerbench.data import Turn
from steerbench.edits import Add, Edit, PlacedEdit, PromptPart, Site
from steerbench.engine import timing
from steerbench.engine.timing import Timing
from steerbench.latency import grid as grids
from steerbench.latency.grid import AGAIN, Grid, grid_prompts, orders, ratio, time_grid
from steerbench.latency.prompts import fixed_prompts
from steerbench.testbed import Testbed, named

SHIFT = Steering(edits=(PlacedEdit(Site("resid_post", 1), Add(torch.ones(32))),))


class Prefix(PromptPart):
    def __call__(self, dialogue: Any) -> Any:
        return (Turn("system", "Be brief."), *dialogue)


def run(lm: LanguageModel, grid: Grid, **steerings: Steering) -> list[dict[str, Any]]:
    return time_grid(lm, steerings, VowelReward(), grid, grid_prompts(lm, grid))


def grid(**settings: Any) -> Grid:
    few: dict[str, Any] = {"batch_sizes": (1,), "prompt_tokens": (24,), "new_tokens": 3, "rounds": 2}
    return Grid(**few | settings)


def by_method(cell: dict[str, Any]) -> dict[str, Any]:
    return {arm["method"]: arm for arm in cell["arms"]}


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# order


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_order_changes_and_is_balanced(count: int) -> None:
    found = list(orders(count, 20, seed=0))
    assert found == list(orders(count, 20, seed=0))
    assert all(sorted(order) == list(range(count)) for order in found)
    assert all(a != b for a, b in itertools.pairwise(found))
    before = Counter((a, b) for order in found for i, a in enumerate(order) for b in order[i + 1 :])
    assert set(before.values()) == {10}  # of 20 rounds
    assert count == 2 or found != list(orders(count, 20, seed=1))


def test_arms_are_timed_in_turns_and_compared_within_rounds(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []

    def fake(lm: Any, dialogues: Sequence[Any], steering: Steering, reward: Any, new: int) -> Timing:
        """Pretend that each round is twice as slow, and that steering costs half as much again after the prefill."""
        slow = 2.0 ** (len(calls) // 4)
        calls.append((len(dialogues), len(steering.edits)))
        cost = 1 + len(steering.edits) / 2
        return Timing(slow, slow + slow * cost * (new - 1), peak=len(calls))

    monkeypatch.setattr(grids, "timed", fake)
    (cell,) = run(llama, grid(batch_sizes=(2,), new_tokens=5, rounds=6), one=SHIFT, two=SHIFT + SHIFT)
    rounds = [calls[i : i + 4] for i in range(0, len(calls), 4)]
    assert len(rounds) == 7  # the first warms up
    assert all(sorted(calls) == [(2, 0), (2, 0), (2, 1), (2, 2)] for calls in rounds)
    assert len({tuple(calls) for calls in rounds}) > 2
    arms = by_method(cell)
    assert list(arms) == ["unsteered", AGAIN, "one", "two"]
    assert arms["unsteered"]["ratios"] == {}
    assert arms[AGAIN]["decode_floor"] == 1.0 < arms["one"]["decode_floor"] < arms["two"]["decode_floor"] < 1.1
    for name, total in ((AGAIN, 1.0), ("one", 7 / 5), ("two", 9 / 5)):
        ratios = arms[name]["ratios"]
        decode = 1.0 if name == AGAIN else {"one": 1.5, "two": 2.0}[name]
        for what, expected in (("prefill", 1.0), ("decode", decode), ("total", total)):
            assert ratios[what] == pytest.approx({"median": expected, "low": expected, "high": expected})
    assert arms["one"]["seconds"]["first"] == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    assert arms["one"]["prefill_ms"] == 12_000  # between 8 and 16
    assert arms["one"]["decode_ms_per_token"] == 18_000
    assert arms["two"]["tokens_per_s"] == pytest.approx(2 * 5 / (9 * 12))
    assert max(arm["peak_memory_mb"] for arm in arms.values()) == 28


def test_ratios_against_a_fake_clock(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass through the model takes a second, and one through the edit a quarter."""
    now = [0.0]

    class Slow(Edit):
        def forward(self, h: Tensor, state: Any) -> Tensor:
            now[0] += 0.25
            return h + 1

    def tick(*_: Any) -> None:
        now[0] += 1

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    handle = llama.model.register_forward_pre_hook(tick)
    slow = Steering(edits=(PlacedEdit(Site("resid_post", 0), Slow()),))
    (cell,) = run(llama, grid(batch_sizes=(4,), new_tokens=5), slow=slow)
    handle.remove()
    base, arm = by_method(cell)["unsteered"], by_method(cell)["slow"]
    assert (base["prefill_ms"], base["decode_ms_per_token"], base["tokens_per_s"]) == (1000, 1000, 4.0)
    assert (arm["prefill_ms"], arm["decode_ms_per_token"], arm["tokens_per_s"]) == (1250, 1250, 3.2)
    assert {name: r["median"] for name, r in arm["ratios"].items()} == dict.fromkeys(
        ("prefill", "decode", "total"), 1.25
    )


def test_the_ratio_is_the_median_within_rounds() -> None:
    pairs = [(2.0, 1.0), (30.0, 10.0), (4.0, 4.0), (50.0, 10.0), (6.0, 4.0), (8.0, 2.0), (3.0, 2.5)]
    found = ratio(pairs)
    assert found["median"] == 2
    generator = torch.Generator().manual_seed(3)
    values = torch.tensor([2, 3, 1, 5, 1.5, 4, 1.2])
    medians = values[torch.randint(7, (20_000, 7), generator=generator)].median(dim=1).values
    assert [found["low"], found["high"]] == pytest.approx(medians.quantile(torch.tensor([0.025, 0.975])).tolist())


@pytest.mark.parametrize("rounds", range(1, 9))
def test_an_interval_needs_as_many_rounds_as_can_hold_one(rounds: int) -> None:
    """The median lies beyond all values if each of them falls on one side, as coins do: at most 5 % may."""
    outside = sum(len({*coins}) == 1 for coins in itertools.product("HT", repeat=rounds)) / 2**rounds
    found = ratio([(1 + i, 1.0) for i in range(rounds)])
    assert found["median"] == (1 + rounds) / 2
    assert (found["low"] is None, found["high"] is None) == (outside > 0.05, outside > 0.05)


# prompts


@pytest.mark.parametrize("n_tokens", [22, 23, 33, 100])
def test_prompts_have_the_length_asked_for(llama: LanguageModel, n_tokens: int) -> None:
    prompts = fixed_prompts(llama, n_tokens, 5)
    assert {len(llama.tokens(prompt).prompt) for prompt in prompts} == {n_tokens}
    assert len(set(prompts)) == 5
    assert fixed_prompts(llama, n_tokens, 2) == prompts[:2]
    assert fixed_prompts(llama, n_tokens, 1, seed=1) != prompts[:1]


def test_prompts_with_a_chat_template() -> None:
    home = named("testbed")
    assert isinstance(home, Testbed)
    lm = LanguageModel.load(home.part("lm"))
    for n_tokens in (8, 32, 33, 200):
        assert {len(lm.tokens(prompt).prompt) for prompt in fixed_prompts(lm, n_tokens, 4)} == {n_tokens}


def test_a_prompt_too_short_for_the_format(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match=r"has 20 tokens with a single word in it; raise --prompt-tokens from 19"):
        fixed_prompts(llama, 19, 1)


def test_every_pass_has_whole_rows_and_there_are_as_many_as_tokens(llama: LanguageModel) -> None:
    """Nothing is padded, and every run makes all of its tokens: the steered prompt is longer by what was added."""
    seen: list[tuple[int, ...]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(tuple(kwargs["input_ids"].shape))
        mask = kwargs.get("attention_mask")
        assert mask is None or bool(mask.all())

    handle = llama.model.register_forward_pre_hook(note, with_kwargs=True)
    (cell,) = run(llama, grid(batch_sizes=(3,), new_tokens=4, rounds=1), prompt=Steering(prompt=(Prefix(),)))
    handle.remove()
    added = len("Be brief.\n\n")
    passes = Counter(shape for shape in seen if shape[0] == 3)
    assert len(seen) - passes.total() == 1  # to see what a column of the cache holds
    runs = 2 * 2  # rounds, with the one that warms up, and twice in each
    assert passes == {(3, 24): 2 * runs, (3, 24 + added): runs, (3, 1): 3 * runs // 2 * 3}
    assert [arm["prompt_tokens"] for arm in cell["arms"]] == [24, 24, 24 + added]


# what goes wrong in a cell


@pytest.mark.parametrize(
    "error", mostly_slow([torch.OutOfMemoryError("CUDA"), MemoryError()], lambda e: type(e) is MemoryError)
)
def test_a_method_without_memory_in_one_cell_stops_no_other(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = timing.timed

    def timed(lm: Any, dialogues: Any, steering: Steering, *rest: Any) -> Timing:
        if len(dialogues) == 2 and steering.edits:
            raise error
        return real(lm, dialogues, steering, *rest)

    monkeypatch.setattr(grids, "timed", timed)
    cells = run(llama, grid(batch_sizes=(1, 2, 3)), shift=SHIFT, plain=Steering())
    assert [("problem" in by_method(cell)["shift"]) for cell in cells] == [False, True, False]
    assert by_method(cells[1])["shift"] == {"method": "shift", "prompt_tokens": 24, "problem": "out of memory"}
    for cell in cells:
        for name in ("unsteered", AGAIN, "plain"):
            assert by_method(cell)[name]["tokens_per_s"] > 0


def test_without_the_unsteered_model_a_cell_is_empty(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def timed(lm: Any, dialogues: Any, *rest: Any) -> Timing:
        tried.append(len(dialogues))
        if len(dialogues) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return Timing(1.0, 2.0, 3.0)

    monkeypatch.setattr(grids, "timed", timed)
    cells = run(llama, grid(batch_sizes=(2, 1)), shift=SHIFT)
    assert cells[0]["arms"][0]["problem"] == "out of memory"
    assert {arm["problem"] for arm in cells[0]["arms"]} <= {"out of memory", "the unsteered model: out of memory"}
    assert tried.count(2) <= 3
    assert all("problem" not in arm for arm in cells[1]["arms"])


def test_what_does_not_fit_the_context_is_said(llama: LanguageModel) -> None:
    """tiny models read 256 tokens: the plain prompt fits to the last token, the longer one does not."""
    (cell,) = run(llama, grid(prompt_tokens=(253,), rounds=1), prompt=Steering(prompt=(Prefix(),)))
    arms = by_method(cell)
    assert arms["prompt"]["problem"] == "264 prompt tokens and 3 new ones do not fit the context of 256"
    assert arms["unsteered"]["prefill_ms"] > 0


def test_a_prompt_longer_than_the_context_is_refused(llama: LanguageModel) -> None:
    """One too long among several is refused as well, whichever it is; one that fits to the last token is not."""
    grid(prompt_tokens=(24, 253)).check_room(llama)
    for lengths in ((24, 254), (254, 24)):
        wanted = "^254 prompt tokens and 3 new ones do not fit the context of 256 of .*; lower --prompt-tokens or --new"
        with pytest.raises(SteerbenchError, match=wanted):
            grid(prompt_tokens=lengths).check_room(llama)


def test_a_bug_of_a_plugin_is_shown_and_no_hook_stays(llama: LanguageModel) -> None:
    class Broken(Edit):
        def forward(self, h: Tensor, state: Any) -> Tensor:
            raise ZeroDivisionError("my own fault")

    before = hooks(llama.model)
    broken = Steering(edits=(PlacedEdit(Site("resid_post", 0), Broken()),))
    (cell,) = run(llama, grid(), broken=broken, shift=SHIFT)
    assert "ZeroDivisionError: my own fault" in by_method(cell)["broken"]["problem"]
    assert "Traceback" in by_method(cell)["broken"]["problem"]
    assert by_method(cell)["shift"]["ratios"]["total"]["median"] > 0
    assert hooks(llama.model) == before


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"new_tokens": 1}, {"batch_sizes": (0,)}, {"prompt_tokens": ()}])
def test_a_grid_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises((SteerbenchError, ValueError), match="must be 1 or more"):
        grid(**settings)
