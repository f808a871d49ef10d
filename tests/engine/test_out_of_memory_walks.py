"""Whatever is walked in batches survives running out of memory: nothing is lost, doubled, or left behind."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from scarce_memory import ERRORS, SAMPLED, told
from thorough import mostly_slow
from torch import Tensor, nn
from transformers import LogitsProcessor

from steerbench import LanguageModel, Steering, generate
from steerbench.data import user
from steerbench.edits import Add, Edit, LogitsPart, PlacedEdit, Site
from steerbench.engine import logits as logits_module
from steerbench.engine.activations import activations, response_states
from steerbench.engine.effect import effect
from steerbench.learn import RewardModel, Tokens, log_probs, response_logits
from steerbench.models.encoder import SentenceEncoder

TEXTS = [f"How do I make {'very ' * n}good bread{'?' * (n % 3)}" for n in range(9)]
DIALOGUES = [user(text) for text in TEXTS]
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


@pytest.fixture(params=mostly_slow(["falcon", "gpt2", "llama"], "gpt2".__eq__))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def memory(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Memory:
    return Memory(monkeypatch, lm.anatomy.blocks[-1])


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
    kept = logits_module._processed
    calls: list[int] = []

    def processed(*args: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise ERRORS["torch"]()
        return kept(*args)

    monkeypatch.setattr(logits_module, "_processed", processed)
    with told(9, 4):
        found = dict(response_logits(llama, SEQUENCES, steering(llama), batch_size=9))
    assert sorted(found) == list(range(9))
    for i, logits in found.items():
        target = torch.tensor(SEQUENCES[i].response)[:, None]
        torch.testing.assert_close(logits.log_softmax(-1).gather(-1, target)[:, 0], expected[i])


def test_effect(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch, llama.anatomy.blocks[-1])
    calls = steering(llama)
    responses = generate(llama, DIALOGUES, calls, SAMPLED)
    expected = effect(llama, DIALOGUES, responses, calls, batch_size=9)
    memory.shrink(3)
    with pytest.warns(UserWarning, match="does not hold 9 sequences at once; going on with 2"):
        found = effect(llama, DIALOGUES, responses, calls, batch_size=9)
    assert str(found.report["tokens"]) == str(sum(len(r.ids) for r in responses))
    assert found.kl == pytest.approx(expected.kl, rel=1e-3, abs=1e-7)
    assert found.nll == pytest.approx(expected.nll, rel=1e-4)
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
