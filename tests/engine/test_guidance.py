"""Parts that guide decoding get other models, the reward, and passes that say whether they are steered."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from thorough import mostly_slow
from torch import Tensor
from transformers import LogitsProcessor

from steerbench import Decoding, LanguageModel, Reward, SteerbenchError, Steering, generate
from steerbench.contract import tiny
from steerbench.contract.case import close
from steerbench.data import Dialogue, user
from steerbench.edits import Add, DecodePart, DecodingContext, Edit, LogitsPart, PlacedEdit, Site
from steerbench.engine import guidance
from steerbench.engine.effect import effect
from steerbench.engine.forward_passes import CACHE, left_cache
from steerbench.engine.guidance import identified
from steerbench.learn import Tokens, log_probs, response_logits
from steerbench.models.response import Response
from steerbench.steering.parts import GuidingPart, PerPosition

RAGGED = [user("Hi"), user("How do I bake a cake, and what do I need for it?"), user("x")]
SAMPLED = Decoding(max_new_tokens=5, temperature=1.0)
WAYS = ("steered", "unsteered", "unsteered inside of steered", "says nothing")


class Nested(LogitsPart):
    """Runs the model over every prefix, and keeps its logits in place of what it is given."""

    steps: ClassVar[list[Tensor]] = []

    def __init__(self, way: str) -> None:
        self.way = way

    def processor_in(self, context: DecodingContext) -> LogitsProcessor:
        way, steps = self.way, self.steps
        steps.clear()

        class Processor(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                new = torch.ones_like(input_ids[:, context.mask.shape[1] :])
                mask = torch.cat([context.mask, new], dim=1)
                inside = context.unsteered() if way == "unsteered" else nullcontext()
                if "inside" in way or way == "steered":
                    inside = context.steered(input_ids, mask)
                with inside, context.unsteered() if "inside" in way else nullcontext():
                    positions = (mask.cumsum(1) - 1).clamp(min=0)
                    out = context.lm.model(input_ids, mask, position_ids=positions, use_cache=False)
                steps.append(out.logits[:, -1].float())
                changed: Tensor = scores + out.logits[:, -1] / 2
                return changed

        return Processor()


class PromptShift(Edit):
    """Adds to every position what lies on it, and then the mean of the prompt: state of both kinds is needed."""

    def start(self, prompt: Tensor, mask: Tensor) -> PerPosition:
        return PerPosition(2 * prompt.roll(1, -1) * mask[..., None])

    def forward(self, h: Tensor, state: Any) -> Tensor:
        return h + torch.as_tensor(state)


def edits(kind: str) -> tuple[PlacedEdit, ...]:
    vector = torch.linspace(-3, 3, 32)
    return {
        "nothing": (),
        "hook": (PlacedEdit(Site("resid_post", 1), Add(vector), "response"),),
        "folded": (PlacedEdit(Site("z", 1), Add(vector), "all"), PlacedEdit(Site("attn_out", 0), Add(vector), "all")),
        "state": (PlacedEdit(Site("resid_post", 0), PromptShift(), "all"), PlacedEdit(Site("final"), Add(vector))),
    }[kind]


def forced(lm: LanguageModel, steering: Steering, responses: Sequence[Response]) -> list[Tensor]:
    tokens = [Tokens(lm.tokens(d).prompt, r.ids) for d, r in zip(RAGGED, responses, strict=True)]
    return log_probs(lm, tokens, steering)


# Passes of the model in the middle of a steered one


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", mostly_slow(["nothing", "hook", "folded", "state"], {"nothing", "state"}.__contains__))
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_nested_pass_gives_the_same_in_decoding_and_in_scoring(
    llama: LanguageModel, kind: str, way: str, use_cache: bool
) -> None:
    """The nested logits of the one row are compared step by step, and through them the draws of a batch."""
    steering = Steering(edits=edits(kind), logits=(Nested(way),))
    (alone,) = generate(llama, RAGGED[1:2], steering, SAMPLED, use_cache=use_cache)
    decoded = torch.cat(Nested.steps)[: len(alone.ids)]
    tokens = Tokens(llama.tokens(RAGGED[1]).prompt, alone.ids)
    list(response_logits(llama, [tokens], steering))
    assert close(torch.cat(Nested.steps), decoded)
    together = generate(llama, RAGGED, steering, SAMPLED, use_cache=use_cache)
    assert together[1] == alone


@pytest.mark.parametrize("kind", ["hook", "folded", "state"])
def test_the_passes_are_those_of_the_model_with_edits_and_without(llama: LanguageModel, kind: str) -> None:
    found: dict[str, Tensor] = {}
    tokens = Tokens(llama.tokens(RAGGED[1]).prompt, (7, 8, 9))
    for way in WAYS:
        list(response_logits(llama, [tokens], Steering(edits=edits(kind), logits=(Nested(way),))))
        found[way] = torch.cat(Nested.steps)
    ((_, steered),) = response_logits(llama, [tokens], Steering(edits=edits(kind)))
    ((_, plain),) = response_logits(llama, [tokens])
    assert close(found["steered"], steered)
    assert all(close(found[way], plain) for way in WAYS[1:])
    assert not close(steered, plain)


@pytest.mark.parametrize("kind", ["hook", "folded"])
def test_lookahead_continues_a_steered_pass_with_its_cache(llama: LanguageModel, kind: str) -> None:
    lm, prompt = llama, list(llama.tokens(RAGGED[0]).prompt)
    found: list[Tensor] = []

    class Ahead(LogitsPart):
        def processor_in(self, context: DecodingContext) -> LogitsProcessor:
            ids = torch.tensor([prompt, prompt])  # two candidates of one row
            with context.steered(ids, torch.ones_like(ids)):
                first = lm.model(ids, torch.ones_like(ids), use_cache=True)
                next_ids = torch.tensor([[5], [6]])
                mask = torch.ones(2, len(prompt) + 1, dtype=torch.long)
                out = lm.model(next_ids, mask, use_cache=True, **{CACHE: left_cache(first)})
            found.append(out.logits[:, -1])
            return LogitsProcessor.__new__(_Same)

    generate(lm, RAGGED[:1], Steering(edits=edits(kind), logits=(Ahead(),)), Decoding(max_new_tokens=1))
    tokens = [Tokens(tuple(prompt), (i, 9)) for i in (5, 6)]
    expected = dict(response_logits(lm, tokens, Steering(edits=edits(kind))))
    assert close(found[0], torch.stack([expected[i][1] for i in (0, 1)]))


class _Same(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores


class FailInside(LogitsPart):
    def processor_in(self, context: DecodingContext) -> LogitsProcessor:
        class Processor(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                with context.steered(input_ids, torch.ones_like(input_ids)), context.unsteered():
                    raise InterruptedError

        return Processor()


@pytest.mark.parametrize("kind", ["hook", "folded"])
def test_an_error_inside_leaves_no_trace(llama: LanguageModel, kind: str) -> None:
    biases = [m._parameters.get("bias") for m in llama.model.modules()]
    with pytest.raises(InterruptedError):
        generate(llama, RAGGED[:1], Steering(edits=edits(kind), logits=(FailInside(),)), SAMPLED)
    assert [m._parameters.get("bias") for m in llama.model.modules()] == biases
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.model.modules())


# Other models


class Expert(LogitsPart):
    """Adds the logits of another model."""

    seen: ClassVar[list[LanguageModel]] = []

    def __init__(self, name: str, weight: float) -> None:
        self.name, self.weight = name, weight

    @property
    def models(self) -> Mapping[str, str]:
        return {"expert": self.name}

    def processor_in(self, context: DecodingContext) -> LogitsProcessor:
        expert, weight = context.models["expert"], self.weight
        self.seen.append(expert)

        class Processor(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                mask = torch.nn.functional.pad(context.mask, (0, input_ids.shape[1] - context.mask.shape[1]), value=1)
                positions = (mask.cumsum(1) - 1).clamp(min=0)
                changed: Tensor = scores + weight * expert.model(input_ids, mask, position_ids=positions).logits[:, -1]
                return changed

        return Processor()


@pytest.fixture
def fresh() -> Any:
    guidance.loaded.cache_clear()
    guidance.identified.cache_clear()
    yield
    guidance.loaded.cache_clear()
    guidance.identified.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_the_engine_loads_a_model_once_and_hands_it_over(
    llama: LanguageModel, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = LanguageModel.load

    def counted(name: str, **more: Any) -> LanguageModel:
        loads.append(name)
        return load(name, **more)

    monkeypatch.setattr(LanguageModel, "load", counted)
    steering = Steering(logits=(Expert(str(world / "lm"), 1.0), Expert(str(world / "lm"), -1.0)))
    assert steering.models == [str(world / "lm")]
    cancelled = generate(llama, RAGGED, steering, SAMPLED, batch_size=1)
    assert cancelled == generate(llama, RAGGED, Steering(), SAMPLED)
    assert forced(llama, Steering(logits=steering.logits[:1]), cancelled)[0].shape == (len(cancelled[0].ids),)
    assert loads == [str(world / "lm")]
    assert len(set(map(id, Expert.seen))) == 1
    assert (Expert.seen[0].dtype, Expert.seen[0].device) == (llama.dtype, llama.device)


@pytest.mark.usefixtures("fresh")
def test_decoding_with_another_model_scores_as_it_draws(llama: LanguageModel, world: Path) -> None:
    steering = Steering(edits=edits("folded"), logits=(Expert(str(world / "lm"), 2.0),))
    together = generate(llama, RAGGED, steering, SAMPLED)
    assert together == [generate(llama, [d], steering, SAMPLED)[0] for d in RAGGED]
    greedy = generate(llama, RAGGED, steering, Decoding(max_new_tokens=4))
    tokens = [Tokens(llama.tokens(d).prompt, r.ids) for d, r in zip(RAGGED, greedy, strict=True)]
    for i, logits in response_logits(llama, tokens, steering):
        assert tuple(logits.argmax(-1).tolist()) == greedy[i].ids


@pytest.mark.usefixtures("fresh")
def test_a_model_is_identified_by_its_weights_and_not_by_its_path(world: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").symlink_to(world / "lm")
    assert identified(str(tmp_path / "copy")) == identified(str(world / "lm"))
    assert identified(str(world / "lm")).startswith("sha256:")
    with pytest.raises(SteerbenchError, match="there is no model folder at"):
        identified(str(tmp_path / "nowhere"))


def test_a_part_names_no_model_unless_it_says_so() -> None:
    assert GuidingPart().models == {}
    assert Steering(logits=(Nested("steered"),), edits=edits("hook")).models == []


# The reward and the dialogues


class Guided(LogitsPart):
    """Forbids one token in rows that the guide likes, and asks for all that it may ask for."""

    def processor_in(self, context: DecodingContext) -> LogitsProcessor:
        liked = context.reward.score(context.dialogues, ["aeiou"] * len(context.dialogues))

        class Processor(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                return scores - 3.0 * liked[:, None] * torch.linspace(0, 1, scores.shape[-1])

        return Processor()


class DialogueLength(Reward):
    name, revision = "length", "1"

    def score(self, dialogues: Sequence[Dialogue], responses: Sequence[str], progress: Any = None) -> Tensor:
        return torch.tensor([float(len(d[-1].text)) for d in dialogues])


def test_rows_get_their_own_dialogues_in_decoding_and_in_scoring(llama: LanguageModel) -> None:
    steering, reward = Steering(logits=(Guided(),)), DialogueLength()
    together = generate(llama, RAGGED, steering, SAMPLED, reward=reward)
    assert together == generate(llama, RAGGED, steering, SAMPLED, reward=reward, batch_size=1)
    assert together != generate(llama, RAGGED, Steering(), SAMPLED)
    greedy = generate(llama, RAGGED, steering, Decoding(max_new_tokens=4), reward=reward)
    tokens = [Tokens(llama.tokens(d).prompt, r.ids) for d, r in zip(RAGGED, greedy, strict=True)]
    for i, logits in response_logits(llama, tokens, steering, dialogues=RAGGED, reward=reward, batch_size=2):
        assert tuple(logits.argmax(-1).tolist()) == greedy[i].ids
    found = effect(llama, RAGGED, greedy, steering, reward=reward)
    assert all(kl > 0 for kl in found.kl)


def test_what_is_missing_is_said(llama: LanguageModel) -> None:
    steering = Steering(logits=(Guided(),))
    with pytest.raises(SteerbenchError, match="guided by a reward model; give one"):
        generate(llama, RAGGED, steering, SAMPLED)
    with pytest.raises(SteerbenchError, match="reads the dialogues whose responses it scores"):
        log_probs(llama, [Tokens((5,), (6,))], steering, reward=DialogueLength())


# Choosing


class Soft(DecodePart):
    """Takes one of the candidates by chance, and looks at their tokens."""

    def __init__(self, candidates: int) -> None:
        self.candidates = candidates

    def choose_in(self, context: DecodingContext, candidates: Sequence[Response]) -> int:
        assert len(context.dialogues) == len(context.prompt_ids) == 1
        assert all(c.ids for c in candidates)
        return int(torch.randint(len(candidates), (), generator=context.generators[0]))


def test_a_choice_draws_by_the_seed_and_not_by_the_batch(llama: LanguageModel) -> None:
    def chosen(seed: int = 0, sample: int = 0, batch_size: int = 16) -> list[Response]:
        return generate(
            llama,
            RAGGED * 4,
            Steering(decode=Soft(8)),
            SAMPLED,
            seed=seed,
            sample=sample,
            reward=tiny.VowelReward(),
            batch_size=batch_size,
        )

    assert chosen() == chosen(batch_size=2)
    assert chosen() != chosen(sample=1)
    assert chosen() != chosen(seed=1)


def test_a_part_without_either_function_says_so(llama: LanguageModel) -> None:
    with pytest.raises(NotImplementedError, match="LogitsPart has neither `processor` nor `processor_in`"):
        generate(llama, RAGGED, Steering(logits=(LogitsPart(),)), SAMPLED)
    empty = DecodePart()
    empty.candidates = 2
    with pytest.raises(NotImplementedError, match="DecodePart has neither `choose` nor `choose_in` nor `select`"):
        generate(llama, RAGGED, Steering(decode=empty), SAMPLED, reward=tiny.VowelReward())
