"""Where memory runs out, batches are halved and begun again: nothing is lost, doubled, or left behind."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor
from typer.testing import Result

from steerbench import (
    Add,
    Decoding,
    Edit,
    LanguageModel,
    LogitsPart,
    PlacedEdit,
    RewardModel,
    Site,
    Steering,
    Store,
    Tokens,
    generate,
    generation,
    log_probs,
    response_logits,
    user,
)
from steerbench.batching import halving
from steerbench.effect import effect
from steerbench.encoder import SentenceEncoder
from steerbench.generation import activations, response_states
from steerbench.machine import OUT_OF_MEMORY

ERRORS: dict[str, Callable[[], RuntimeError]] = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    "old torch": lambda: RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"),
    "Apple": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, max allowed: 9 GB)"),
}
TEXTS = [f"How do I make {'very ' * n}good bread{'?' * (n % 3)}" for n in range(9)]
DIALOGUES = [user(text) for text in TEXTS]
SAMPLED = Decoding(max_new_tokens=6, temperature=1.0)
SEQUENCES = [Tokens(tuple(range(3, 9 + n)), tuple(range(20, 23 + n % 4))) for n in range(9)]


class Memory:
    """Lets a module fail above some rows, from a pass on; keeps how many rows each pass had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: nn.Module) -> None:
        self.room, self.passes_before = 10**9, 0
        self.rows: list[int] = []
        self._forward: Callable[..., Any] = module.forward
        monkeypatch.setattr(module, "forward", self)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.rows.append(len(hidden_states))
        if len(hidden_states) > self.room and len(self.rows) > self.passes_before:
            raise ERRORS["torch"]()
        return self._forward(hidden_states, *args, **kwargs)

    def shrink(self, room: int, passes_before: int = 0) -> None:
        """Have room for so many rows only, once so many more passes went through."""
        self.room, self.passes_before = room, passes_before
        self.rows.clear()


class Drift(Edit):
    """Adds a little more at each pass of a generation, starting from the mean of the prompt."""

    def start(self, prompt: Tensor, mask: Tensor) -> dict[str, Any]:
        return {"passes": 0, "mean": (prompt * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]}

    def forward(self, h: Tensor, state: dict[str, Any]) -> Tensor:
        state["passes"] += 1
        drifted: Tensor = h + 0.1 * state["passes"] * state["mean"]
        return drifted


class Penalty(LogitsPart):
    """Makes the tokens of the steps before less likely; the processor remembers the steps."""

    def processor(self, lm: LanguageModel, prompt_ids: Tensor, mask: Tensor) -> LogitsProcessor:
        class Processor(LogitsProcessor):
            def __init__(self) -> None:
                self.total: Tensor | float = 0.0

            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                self.total = self.total + scores.softmax(-1)
                return scores - 3 * self.total

        return Processor()


@pytest.fixture(params=["falcon", "gpt2", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def memory(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Memory:
    return Memory(monkeypatch, lm.anatomy.blocks[-1])


@contextmanager
def told(too_many: int, n_rows: int) -> Iterator[None]:
    """Expect exactly one warning."""
    with pytest.warns(UserWarning, match="memory") as caught:
        yield
    text = f"the memory does not hold {too_many} sequences at once; going on with {n_rows}. "
    assert [str(w.message) for w in caught] == [text + "Lower --batch-size to begin with fewer."]


@contextmanager
def untouched(lm: LanguageModel) -> Iterator[None]:
    """Check that neither hooks nor weights of a model change."""

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())

    before = hooks(), {name: value.clone() for name, value in lm.model.state_dict().items()}
    yield
    assert hooks() == before[0]
    after = lm.model.state_dict()
    assert after.keys() == before[1].keys()
    assert all(torch.equal(after[name], value) for name, value in before[1].items())


def steering(lm: LanguageModel) -> Steering:
    """Return edits with a state, one that is folded into a bias, and a logits part with a memory."""
    width = len(activations(lm, Site("z", 0), [Tokens((3,))], "last_prompt")[0])
    folded = PlacedEdit(Site("z", 0), Add(torch.linspace(-1, 1, width)), "all")
    return Steering(edits=(folded, PlacedEdit(Site("resid_post", 0), Drift(), "response")), logits=(Penalty(),))


class Bar:
    """Progress that adds up."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    @contextmanager
    def __call__(self, label: str, total: int) -> Iterator[Any]:
        yield self.steps.append
        assert sum(self.steps) == total


def same(found: list[Tensor], expected: list[Tensor], *, exact: bool) -> None:
    """Compare tensors: bit by bit, or where batches had another size, up to rounding."""
    for got, right in zip(found, expected, strict=True):
        torch.testing.assert_close(got, right, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-4)


# The one mechanism


@pytest.mark.parametrize("error", ERRORS)
def test_halves_until_it_fits_and_stays_there(error: str) -> None:
    tried: list[list[int]] = []

    def work(rows: list[int]) -> str:
        tried.append(rows)
        if len(rows) > 3:
            raise ERRORS[error]()
        return "-".join(map(str, rows))

    with told(8, 2):
        found = list(halving([list(range(8)), [9, 8, 10, 11, 12], [13]], work))
    parts = [[0, 1], [2, 3], [4, 5], [6, 7], [9, 8], [10, 11], [12], [13]]
    assert found == [(rows, "-".join(map(str, rows))) for rows in parts]
    assert tried == [list(range(8)), [0, 1, 2, 3], *parts]


@pytest.mark.parametrize("error", ERRORS)
def test_one_row_too_many_ends_the_walk(error: str) -> None:
    tried: list[int] = []

    def work(rows: list[int]) -> None:
        tried.append(len(rows))
        raise ERRORS[error]()

    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        list(halving([[0, 1, 2, 3, 4]], work))
    assert tried == [5, 2, 1]


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("out of memory"), MemoryError()])
def test_another_error_is_not_tried_again(error: Exception) -> None:
    tried: list[int] = []

    def work(rows: list[int]) -> None:
        tried.append(len(rows))
        raise error

    with pytest.raises(type(error)):
        list(halving([[0, 1], [2, 3]], work))
    assert tried == [2]


def test_what_failed_is_let_go_before_the_next_try() -> None:
    """Else the smaller batch would not fit either."""
    alive: list[Any] = []

    class Large:
        def __init__(self) -> None:
            self.own = self  # only a collection finds it
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    def work(rows: list[int]) -> int:
        large = Large()
        if len(rows) > 1:
            raise ERRORS["torch"]()
        return len(alive) + (large is None)

    with told(4, 1):
        assert next(halving([[0, 1, 2, 3]], work)) == ([0], 1)


# What is walked in batches


@pytest.mark.parametrize("passes_before", [0, 3, 8])
def test_generation(lm: LanguageModel, memory: Memory, passes_before: int) -> None:
    """Memory runs out in the prefill, at a decoding step, or in the second batch, when states have long begun."""
    calls = steering(lm)
    expected = generate(lm, DIALOGUES, calls, SAMPLED, seed=3, batch_size=2)
    memory.shrink(2, passes_before)
    bar = Bar()
    with untouched(lm), told(4, 2):
        found = generate(lm, DIALOGUES, calls, SAMPLED, seed=3, batch_size=4, progress=bar)
    assert found == expected
    assert set(bar.steps) <= {1, 2, 4}
    assert memory.rows[passes_before] == 4
    assert max(memory.rows[memory.rows.index(2) :]) == 2


def test_generation_of_one_row_ends_with_the_error(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch, llama.anatomy.blocks[-1])
    calls = steering(llama)
    memory.shrink(0)
    with untouched(llama), pytest.raises(torch.OutOfMemoryError):
        generate(llama, DIALOGUES, calls, SAMPLED, batch_size=4)
    assert memory.rows == [4, 2, 1]


@pytest.mark.parametrize("pool", ["last_prompt", "all"])
@pytest.mark.parametrize("passes_before", [0, 1])
def test_activations(lm: LanguageModel, memory: Memory, pool: Any, passes_before: int) -> None:
    site = Site("resid_post", lm.n_layers - 1)
    expected = activations(lm, site, SEQUENCES, pool, batch_size=2)
    memory.shrink(2, passes_before)
    bar = Bar()
    with untouched(lm), told(4, 2):
        found = activations(lm, site, SEQUENCES, pool, batch_size=4, progress=bar)
    same(found, expected, exact=not passes_before)
    assert set(bar.steps) <= {1, 2, 4}


@pytest.mark.parametrize("n", [1, 4, 9, 40])
def test_states(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    memory = Memory(monkeypatch, llama.anatomy.blocks[-1])
    many = [SEQUENCES[i % 9] for i in range(n)]
    site = Site("resid_post", llama.n_layers - 1)
    expected = [states for tokens in many for states in response_states(llama, site, [tokens])]
    same(list(response_states(llama, site, many, batch_size=2)), expected, exact=False)
    memory.shrink(1)
    bar = Bar()
    with untouched(llama), told(min(n, 2), 1) if n > 1 else untouched(llama):
        found = list(response_states(llama, site, many, batch_size=2, progress=bar))
    same(found, expected, exact=True)
    assert bar.steps == [1] * n
    assert memory.rows.count(2) == (n > 1)  # the smaller size holds for the whole walk


def test_log_probs(lm: LanguageModel, memory: Memory) -> None:
    calls = steering(lm)
    expected = log_probs(lm, SEQUENCES, calls, batch_size=2)
    memory.shrink(2)
    with untouched(lm), told(4, 2):
        same(log_probs(lm, SEQUENCES, calls, batch_size=4), expected, exact=True)


def test_memory_that_the_scores_need(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass goes through, and what is made of its logits does not."""
    expected = log_probs(llama, SEQUENCES, steering(llama), batch_size=1)
    kept = generation._processed
    calls: list[int] = []

    def processed(*args: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise ERRORS["torch"]()
        return kept(*args)

    monkeypatch.setattr(generation, "_processed", processed)
    seen: list[str] = []
    with told(9, 4):
        found = dict(
            response_logits(
                llama, SEQUENCES, steering(llama), batch_size=9, observe=lambda s, b, a: seen.append(str(s))
            )
        )
    assert sorted(found) == list(range(9))
    assert seen == ["z.0", "resid_post.0"]
    for i, logits in found.items():
        target = torch.tensor(SEQUENCES[i].response)[:, None]
        torch.testing.assert_close(logits.log_softmax(-1).gather(-1, target)[:, 0], expected[i])


@pytest.mark.parametrize("passes_before", [0, 1])
@pytest.mark.parametrize("room", [1, 2, 3])
def test_an_observer_sees_whole_batches(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, room: int, passes_before: int
) -> None:
    """The first edit is seen before the memory runs out, the last one is not: each is seen once for every batch."""
    memory = Memory(monkeypatch, llama.anatomy.blocks[-1])
    last = PlacedEdit(Site("final"), Add(torch.ones(32)), "response")
    calls = steering(llama) + Steering(edits=(last,))
    expected: list[tuple[Site, Tensor, Tensor]] = []
    kept = dict(response_logits(llama, SEQUENCES, calls, batch_size=4, observe=lambda *all_: expected.append(all_)))
    memory.shrink(room, passes_before)
    seen: list[tuple[Site, Tensor, Tensor]] = []
    with untouched(llama), told(4, 1 if room == 1 else 2):
        walk = response_logits(llama, SEQUENCES, calls, batch_size=4, observe=lambda *all_: seen.append(all_))
        found = dict(walk)
    assert [str(site) for site, _, _ in seen] == ["z.0", "resid_post.0", "final"] * 3
    assert found.keys() == kept.keys()
    for i, logits in found.items():
        torch.testing.assert_close(logits, kept[i])
    order = sorted(range(9), key=lambda i: -sum(map(len, SEQUENCES[i])))
    for n, ((_, *shown), (_, *meant)) in enumerate(zip(seen, expected, strict=True)):
        lengths = [sum(map(len, SEQUENCES[i])) for i in order[n // 3 * 4 :][:4]]
        for got, right in zip(shown, meant, strict=True):
            assert got.shape == right.shape
            for k, length in enumerate(lengths):
                torch.testing.assert_close(got[k, :length], right[k, :length])


def test_effect(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch, llama.anatomy.blocks[-1])
    calls = steering(llama)
    responses = generate(llama, DIALOGUES, calls, SAMPLED)
    expected = effect(llama, DIALOGUES, responses, calls, batch_size=9)
    memory.shrink(3)
    with pytest.warns(UserWarning, match="does not hold 9 sequences at once; going on with 2"):
        found = effect(llama, DIALOGUES, responses, calls, batch_size=9)
    assert str(found.report["tokens"]) == str(sum(len(r.ids) for r in responses))
    for site, norm in expected.report["edit_norm"].items():
        assert found.report["edit_norm"][site] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("passes_before", [0, 1])
def test_rewards(world: Path, monkeypatch: pytest.MonkeyPatch, passes_before: int) -> None:
    reward = RewardModel.load(str(world / "reward"), batch_size=2)
    expected = reward.score(DIALOGUES, TEXTS)
    forward: Any = reward._forward
    memory = Memory(monkeypatch, forward.model.base_model.encoder.layer[-1])
    memory.shrink(2, passes_before)
    reward.batch_size = 4
    bar = Bar()
    with told(4, 2):
        found = reward.score(DIALOGUES, TEXTS, bar)
    same([found], [expected], exact=not passes_before)
    assert set(bar.steps) <= {1, 2, 4}
    memory.shrink(0)
    with pytest.raises(torch.OutOfMemoryError):
        reward.score(DIALOGUES, TEXTS)


@pytest.mark.parametrize("passes_before", [0, 1])
def test_encoder(world: Path, monkeypatch: pytest.MonkeyPatch, passes_before: int) -> None:
    encoder = SentenceEncoder.load(str(world / "encoder"), batch_size=2)
    expected = encoder.encode(TEXTS)
    memory = Memory(monkeypatch, encoder._model.encoder.layer[-1])
    memory.shrink(2, passes_before)
    encoder.batch_size = 4
    bar = Bar()
    with told(4, 2):
        found = encoder.encode(TEXTS, progress=bar)
    same(list(found), list(expected), exact=not passes_before)
    assert set(bar.steps) <= {1, 2, 4}


# The whole run


def fits(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Let generation hold so many rows at once."""
    kept = generation._generate_batch

    def generate_batch(lm: LanguageModel, batch: Any, *args: Any) -> list[list[int]]:
        if len(batch.input_ids) > room:
            raise ERRORS["torch"]()
        return kept(lm, batch, *args)

    monkeypatch.setattr(generation, "_generate_batch", generate_batch)


def test_a_run_goes_on_with_fewer_rows(
    run_cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_cli("--methods", "caa", "--out", tmp_path / "whole").exit_code == 0
    fits(monkeypatch, 2)
    with pytest.warns(UserWarning, match="does not hold 4 sequences at once; going on with 2"):
        assert run_cli("--methods", "caa", "--out", tmp_path / "halved").exit_code == 0
    whole, halved = (Store(tmp_path / name).records() for name in ("whole", "halved"))
    for one, other in zip(whole, halved, strict=True):
        assert list(one.examples["response"]) == list(other.examples["response"])


def test_a_run_that_does_not_hold_one_row_says_what_to_do(
    run_cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    fits(monkeypatch, 0)
    done = run_cli("--methods", "caa")
    assert done.exit_code == 2
    assert done.stderr == f"error: {OUT_OF_MEMORY}\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_device(llama: LanguageModel) -> None:
    """A third of what a batch needs: the walk goes on with a smaller one."""
    many = [user("x" * 200) for _ in range(512)]
    llama.model.to("cuda")
    expected = generate(llama, many, decoding=SAMPLED, batch_size=32)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    generate(llama, many, decoding=SAMPLED, batch_size=512)
    share = torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share / 3)
    try:
        with pytest.warns(UserWarning, match="does not hold 512 sequences at once"):
            found = generate(llama, many, decoding=SAMPLED, batch_size=512)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found == expected
