"""Another engine gives what transformers gives: what travels to it, what it is asked to do, and what it refuses."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from carried_steerings import CONSTANTS, OTHERS, PROMPTS, carried
from packed_engine import PackedEngine
from thorough import mostly_slow
from torch import Tensor

from steerbench import LanguageModel, SteerbenchError, Steering, generate
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.decoding import Decoding
from steerbench.edits import Add, DecodePart, Edit, Instruction, PlacedEdit, Scope, Site
from steerbench.engine.backends.generation_engine import GenerationEngine
from steerbench.engine.backends.packed_edits import PackedEdits, _tables
from steerbench.engine.backends.packed_step import PackedStep
from steerbench.engine.backends.shipment import Shipped
from steerbench.engine.generate import generate_fixed, generate_samples
from steerbench.engine.generate_each import generate_each
from steerbench.engine.timing import timed

NEW = Decoding(max_new_tokens=5)
DRAWN = Decoding(max_new_tokens=5, temperature=1.0, top_k=40, top_p=0.95)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny.language_model("llama")


@pytest.fixture(scope="module")
def steerings(lm: LanguageModel) -> dict[str, Steering]:
    return carried(lm)


# of the constants each site once and each scope several times; the others are slow
QUICK = [name for i, name in enumerate(CONSTANTS) if i % 3 == i // 3 % 3]


@pytest.mark.parametrize("name", mostly_slow([*CONSTANTS, *OTHERS], {*QUICK, *OTHERS}.__contains__))
def test_another_engine_gives_the_same_tokens(lm: LanguageModel, steerings: dict[str, Steering], name: str) -> None:
    steering = steerings[name]
    wanted = generate(lm, PROMPTS, steering, NEW, batch_size=4)
    assert generate(lm, PROMPTS, steering, NEW, batch_size=4, engine=PackedEngine()) == wanted
    plain = generate(lm, PROMPTS, Steering(), NEW)
    assert (wanted == plain) == (name == "nothing")


@pytest.mark.parametrize("sample", [0, 1])
def test_it_draws_what_transformers_draws(lm: LanguageModel, steerings: dict[str, Steering], sample: int) -> None:
    given: dict[str, Any] = {"seed": 3, "sample": sample}
    wanted = generate(lm, PROMPTS, steerings["ascent"], DRAWN, **given)
    assert generate(lm, PROMPTS, steerings["ascent"], DRAWN, engine=PackedEngine(), **given) == wanted


class Vowels(DecodePart):
    def __init__(self, candidates: int) -> None:
        self.candidates = candidates

    def choose(self, dialogue: Any, candidates: Sequence[str], reward: Any) -> int:
        return int(reward.score([dialogue] * len(candidates), candidates).argmax())


@pytest.mark.parametrize("count", [1, 3])
def test_the_same_candidates_and_the_same_choice(lm: LanguageModel, steerings: dict[str, Steering], count: int) -> None:
    steering = steerings["resid_post, response"] + Steering(decode=Vowels(count))
    given: dict[str, Any] = {"reward": tiny.VowelReward(), "batch_size": 4, "seed": 2}
    wanted = generate(lm, PROMPTS, steering, DRAWN, **given)
    found = generate(lm, PROMPTS, steering, DRAWN, engine=PackedEngine(), **given)
    assert found == wanted
    assert [r.draws for r in found] == [r.draws for r in wanted]


@pytest.mark.parametrize("part", [None, Vowels(2)])
def test_samples_are_those_of_transformers(
    lm: LanguageModel, steerings: dict[str, Steering], part: DecodePart | None
) -> None:
    steering = steerings["ascent"] + Steering(decode=part)
    given: dict[str, Any] = {"samples": 2, "seed": 3, "reward": tiny.VowelReward(), "batch_size": 4}
    wanted = generate_samples(lm, PROMPTS, steering, DRAWN, **given)
    assert generate_samples(lm, PROMPTS, steering, DRAWN, engine=PackedEngine(), **given) == wanted
    assert wanted[: len(PROMPTS)] != wanted[len(PROMPTS) :]


def test_a_fixed_number_of_tokens_has_no_end(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[list[list[int]]]] = []
    ours = PackedEngine.continued_each

    def noted(*args: Any, **kwargs: Any) -> Any:
        (found,) = ours(*args, **kwargs)
        seen.append(found)
        return [found]

    monkeypatch.setattr(PackedEngine, "continued_each", noted)
    generate_fixed(lm, PROMPTS, Steering(), 7, engine=PackedEngine())
    assert [len(ids) for (ids,) in seen[0]] == [7] * len(PROMPTS)


class Installing(PackedEngine):
    """Takes a while for edits that are new."""

    installed: Any = None

    def continued_each(self, lm: LanguageModel, prompts: Any, edits: Any, *args: Any, **kwargs: Any) -> Any:
        if edits != self.installed:
            time.sleep(1)
            self.installed = edits
        return super().continued_each(lm, prompts, edits, *args, **kwargs)


def test_handing_over_edits_is_not_the_time_of_a_prompt(lm: LanguageModel, steerings: dict[str, Steering]) -> None:
    timing = timed(lm, PROMPTS[:1], steerings["ascent"], tiny.VowelReward(), 2, Installing())
    assert 0 < timing.first < 0.9


class Mean(Edit):
    def start(self, prompt: Tensor, mask: Tensor) -> Tensor:
        return prompt.mean(1)

    def forward(self, h: Tensor, state: Any) -> Tensor:
        moved: Tensor = h + state[:, None]
        return moved


def test_what_it_cannot_carry_is_refused_by_name(lm: LanguageModel) -> None:
    with pytest.raises(
        SteerbenchError, match="engine packed cannot carry the edit Mean, which is computed from the st"
    ):
        generate(lm, PROMPTS, Steering(edits=(PlacedEdit(Site("final"), Mean()),)), NEW, engine=PackedEngine())


def test_tokens_of_a_packed_step() -> None:
    """Two sequences: four tokens of a prompt of five behind two that came before, and one new token of the other."""
    step = PackedStep.of(
        torch.tensor([0, 4, 5]), torch.tensor([6, 9]), prompts=torch.tensor([3, 1]), ends=torch.tensor([5, 8])
    )
    assert step.prompts.tolist() == [3, 3, 3, 3, 1]
    assert step.positions.tolist() == [2, 3, 4, 5, 8]
    assert step.mask("all")[:, 0].tolist() == [True] * 5
    assert step.mask("prompt")[:, 0].tolist() == [True, True, True, False, False]
    assert step.mask("response")[:, 0].tolist() == [False, False, True, True, True]


def test_padding_behind_the_tokens_and_closed_gates_stay() -> None:
    step = PackedStep.of(torch.tensor([0, 1, 2]), torch.tensor([3, 3]), torch.tensor([0, 1]), torch.tensor([3, 3]))
    h = torch.randn(4, 8, dtype=torch.float32).to(torch.bfloat16)
    placed = PlacedEdit(Site("final"), Add(torch.ones(8)))
    shipped = Shipped(placed, "", "input", open=torch.tensor([False, True]))
    edited = PackedEdits([shipped], torch.device("cpu"))(h, step)
    assert edited.dtype is torch.bfloat16
    assert torch.equal(edited[[0, 2, 3]], h[[0, 2, 3]])
    assert torch.equal(edited[1], (h[1].float() + 1).to(torch.bfloat16))


class OneByOne(PackedEngine):
    """An engine that holds one steering at a time."""

    continued_each = GenerationEngine.continued_each

    def continued(self, lm: LanguageModel, prompts: Any, edits: Any, *args: Any, **kwargs: Any) -> Any:
        decoding, seeds = args
        return PackedEngine.continued_each(self, lm, [prompts], [edits], decoding, [seeds], **kwargs)[0]


@pytest.mark.parametrize("decoding", [NEW, DRAWN])
def test_several_steerings_in_one_batch_do_what_each_does_alone(
    lm: LanguageModel, steerings: dict[str, Steering], decoding: Decoding
) -> None:
    names = ["resid_post, response", "everywhere", "gated", "several", "ascent", "resid_post, all", "in front"]
    mixed = [Steering(), *(steerings[name] for name in names), Steering(prompt=(Instruction("Answer kindly."),))]
    if decoding.temperature:  # a choice among three, under one edit and under none
        mixed += [Steering(decode=Vowels(3)), steerings["everywhere"] + Steering(decode=Vowels(3))]
    given: dict[str, Any] = {"seed": 3, "reward": tiny.VowelReward()}
    alone = [generate(lm, PROMPTS, steering, decoding, **given) for steering in mixed]
    assert generate_each(lm, PROMPTS, (s for s in mixed), decoding, engine=PackedEngine(), **given) == alone  # type: ignore[arg-type]
    assert generate_each(lm, PROMPTS, mixed, decoding, engine=OneByOne(), **given) == alone
    assert generate_each(lm, PROMPTS, mixed, decoding, **given) == alone
    assert len({tuple(r.text for r in responses) for responses in alone}) > 4
    assert generate_each(lm, PROMPTS, [], decoding, engine=PackedEngine()) == []


def test_constants_of_several_steerings_are_one_table() -> None:
    """Those that act in other prompts, in one scope: what is left stands by itself, and the order stays."""

    def placed(value: float, *rows: int, scope: Scope = "all") -> Shipped:
        opened = torch.zeros(4, dtype=torch.bool)
        opened[list(rows)] = True
        return Shipped(PlacedEdit(Site("final"), Add(torch.full((8,), float(value))), scope), "", "input", open=opened)

    edits = [placed(1, 0), placed(2, 1, 2), placed(4, 2), placed(8, 0), placed(16, 3, scope="prompt")]
    assert [len(group) for group in _tables(edits)] == [2, 2, 1]
    step = PackedStep.of(torch.arange(5), torch.full((4,), 3), torch.arange(4), torch.full((4,), 3))
    edited = PackedEdits(edits, torch.device("cpu"))(torch.zeros(4, 8), step)
    assert edited[:, 0].tolist() == [9, 2, 6, 16]
    one_value = replace(edits[1], placed=replace(edits[1].placed, edit=Add(torch.ones(1))))
    narrow = PackedEdits([edits[0], one_value], torch.device("cpu"))(torch.zeros(4, 8), step)
    assert narrow.tolist() == [[1.0] * 8, [1.0] * 8, [1.0] * 8, [0.0] * 8], "one value for all of a state"
    behind = PackedStep.of(torch.arange(5), torch.full((4,), 4), torch.arange(4), torch.full((4,), 3))
    assert PackedEdits(edits, torch.device("cpu"))(torch.zeros(4, 8), behind)[:, 0].tolist() == [9, 2, 6, 0]


def test_a_single_prompt_may_be_a_text(lm: LanguageModel) -> None:
    assert generate(lm, "Hi", decoding=NEW, engine=PackedEngine()) == generate(lm, [user("Hi")], decoding=NEW)
