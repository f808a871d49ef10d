"""Timing: what is timed, in which order, and how the figures are made from it. No test waits for a clock."""

import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from steerbench import LanguageModel, Options, Protocol, Reward, Steering
from steerbench.bench.setup import Setup
from steerbench.contract.tiny import VowelReward
from steerbench.data import user
from steerbench.edits import Add, DecodePart, PlacedEdit, Site
from steerbench.engine import timing as module
from steerbench.engine.generate import generate_fixed
from steerbench.errors import SteerbenchError
from steerbench.models import machine
from steerbench.models.machine import device_label, dtype_of, environment, peak_memory_mb, pick_device, use_threads

SHIFT = Steering(edits=(PlacedEdit(Site("resid_post", 1), Add(torch.ones(32))),))


class First(DecodePart):
    """Draws candidates and takes the first."""

    def __init__(self, candidates: int) -> None:
        self.candidates = candidates

    def choose(self, dialogue: Any, candidates: Sequence[str], reward: Reward) -> int:
        return 0


def test_the_two_are_timed_in_turns_and_ratios_are_taken_within_rounds(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[bool, int]] = []

    def seconds(lm: Any, dialogues: Any, steering: Steering, reward: Any, new: int, engine: None) -> float:
        """Pretend that the clock slows down by the round, and that steering costs half as much again."""
        round_ = len(calls) // 4
        calls.append((bool(steering.edits), new))
        return (1 + round_) * (1.5 if steering.edits else 1.0) * new

    monkeypatch.setattr(module, "_seconds", seconds)
    figures = module.latency(llama, user("Hi"), SHIFT, VowelReward(), new_tokens=5, rounds=3)
    assert [steered for steered, _ in calls] == [True, True, False, False, False, False, True, True] * 2
    assert [new for _, new in calls] == [1, 5] * 8
    assert figures["decode_ratio"] == pytest.approx(1.5)
    assert figures["prefill_ratio"] == pytest.approx(1.5)
    assert figures["unsteered"]["prefill_ms"] == pytest.approx(3000)  # rounds 2, 3, 4: the first warms up
    assert figures["prefill_ms"] == pytest.approx(4500)
    assert figures["unsteered"]["decode_ms_per_token"] == pytest.approx(3000)
    assert figures["tokens_per_s"] == pytest.approx(1 / 4.5)
    assert figures["device"] == device_label(torch.device("cpu"))
    assert figures["memory"] == "process"


def test_every_run_makes_the_same_number_of_tokens(llama: LanguageModel) -> None:
    """Also where the model would end at once. Candidates are rows of one batch, and share the first pass."""
    llama.model.lm_head.bias = torch.nn.Parameter(torch.zeros(llama.model.config.vocab_size))
    llama.model.lm_head.bias.data[llama.end_ids] = 1e6
    rows: list[int] = []
    llama.model.register_forward_pre_hook(lambda m, a, k: rows.append(len(k["input_ids"])), with_kwargs=True)
    for steering, factor in ((Steering(), 1), (SHIFT, 1), (Steering(decode=First(3)), 3)):
        rows.clear()
        generate_fixed(llama, [user("Hi")], steering, 4, VowelReward())
        assert rows == [1, *[factor] * 3]


def test_a_real_timing_has_every_figure(llama: LanguageModel) -> None:
    found = module.latency(llama, user("Hi"), SHIFT, VowelReward(), new_tokens=3, rounds=1)
    prompt = len(llama.tokens(user("Hi")).prompt)
    settings = {"rounds": 1, "new_tokens": 3, "prompt_tokens": prompt, "batch_size": 1, "memory": "process"}
    assert {name: found.pop(name) for name in settings} == settings
    assert found.pop("device") == device_label(torch.device("cpu"))
    base = found.pop("unsteered")
    figures = {"prefill_ms", "decode_ms_per_token", "tokens_per_s", "peak_memory_mb"}
    assert base.keys() == figures
    assert found.keys() == {*figures, "prefill_ratio", "decode_ratio", "decode_floor"}
    assert min(*base.values(), *found.values()) > 0


def test_figures_are_those_of_the_clock(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefill of 10 ms and 20 ms per token, the double if steered."""

    def seconds(_lm: Any, _dialogues: Any, steering: Steering, _reward: Any, new: int, engine: None) -> float:
        return (0.01 + 0.02 * (new - 1)) * (2 if steering == SHIFT else 1)

    monkeypatch.setattr(module, "_seconds", seconds)
    found = module.latency(llama, user("Hi"), SHIFT, VowelReward(), new_tokens=3, rounds=3)
    names = ("prefill_ms", "decode_ms_per_token", "tokens_per_s")
    assert [found["unsteered"][name] for name in names] == pytest.approx([10, 20, 60])
    assert [found[name] for name in names] == pytest.approx([20, 40, 30])
    assert [found[name] for name in ("prefill_ratio", "decode_ratio")] == pytest.approx([2, 2])


def test_devices_and_data_types_are_checked() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")
    for name in ("cuda:99", "nonsense", "cpu:x"):
        with pytest.raises(SteerbenchError, match="Here: auto, cpu"):
            pick_device(name)
    assert dtype_of("bfloat16") is torch.bfloat16
    assert dtype_of("auto") is None
    with pytest.raises(SteerbenchError, match="Did you mean 'float16'"):
        dtype_of("float15")


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that are set, on a machine of eight cores that computes faster the more there are."""
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(machine, "_passes_in", lambda seconds, threads, width: float(threads))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine._fastest.cache_clear()
    return found


def test_threads_suit_the_size_of_the_model(chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (10**5, 4 * 10**6, 10**9):
        use_threads(size, torch.device("cpu"))
    assert chosen == [1, 2, 8]
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    use_threads(4 * 10**6, torch.device("cpu"))
    assert chosen == [1, 2, 8, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    use_threads(10**5, torch.device("cpu"))
    assert chosen == [1, 2, 8, 1]


def test_a_busy_machine_gets_one_thread_for_as_long_as_the_process_lasts(
    chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def passes(seconds: float, threads: int, width: int) -> float:
        asked.append(threads)
        return 1 / threads

    monkeypatch.setattr(machine, "_passes_in", passes)
    for _ in range(2):
        use_threads(10**9, torch.device("cpu"))
    assert chosen == [1, 1]
    assert asked == [1, 8]  # so much slower that it is not tried again


def test_threads_are_timed_at_work() -> None:
    before = torch.get_num_threads()
    try:
        assert machine._passes_in(0.001, 2, 64) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_that_are_given_are_used(protocol: Protocol) -> None:
    before = torch.get_num_threads()
    try:
        setup = Setup(protocol, Options(threads=2))
        assert (setup.lm.n_layers, torch.get_num_threads()) == (3, 2)
    finally:
        torch.set_num_threads(before)
    with pytest.raises(SteerbenchError, match="0 threads cannot compute anything; give 1 or more"):
        Setup(protocol, Options(threads=0))


def test_the_machine_is_named() -> None:
    facts = environment(torch.device("cpu"))
    assert facts["torch"]
    assert facts["transformers"]
    count = torch.get_num_threads()
    assert facts["device"].endswith(f", {count} thread{'s' if count > 1 else ''}")
    assert peak_memory_mb(torch.device("cpu")) > 10
