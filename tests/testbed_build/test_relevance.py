"""What the rewards are asked beside their pairs: where, about what, and at what cost."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from steerbench.data.dialogue import Dialogue, user
from steerbench.progress import silent
from steerbench.testbed.gold import parse, split
from steerbench.testbed.preferences import opening
from steerbench.testbed.topics import GOALS, HARMFUL
from steerbench.testbed.world import World
from steerbench.testbed_build import rewards
from steerbench.testbed_build.language import blank, texts
from steerbench.testbed_build.relevance import RELATIONS, SERVES, Asked, Relevance, asked, medley, relation
from steerbench.testbed_build.rewards import ASKED_WEIGHT, bradley_terry, chats, plain_texts
from steerbench.testbed_build.tokenizer import for_chat, for_encoder, learn
from steerbench.testbed_build.training import Recipe, Setting

ASKED, NEAR = GOALS[0], GOALS[1]
FAR = next(goal for goal in GOALS if goal.topic != ASKED.topic)
REPLY = (
    f"Good luck! Here is how to {ASKED.name}. This is the way to {NEAR.name}. I would rather explain how to {FAR.name}."
)


@pytest.fixture(scope="module")
def learned() -> Any:
    return learn(turn.text for text in texts(World(0), "tokenizer", 1000) for turn in text.dialogue)


def test_each_sentence_is_related_to_the_goal_asked_about() -> None:
    found = [relation(ASKED, sentence) for sentence in parse(f"{REPLY} the to Here.")]
    assert found == ["none", "on", "near", "off", "unknown"]
    harmful = next(goal for goal in HARMFUL if goal.topic != ASKED.topic)
    assert relation(harmful, parse(f"Here is how to {ASKED.name}.")[0]) == "off"


@pytest.mark.parametrize(("wrap", "write"), [(for_chat, chats), (for_encoder, plain_texts)])
def test_questions_are_asked_in_front_of_a_reply_and_behind_its_sentences(learned: Any, wrap: Any, write: Any) -> None:
    tokenizer = wrap(learned)
    prompt: Dialogue = (*user("Hello! How do I sing?"), *user(f"How do I {ASKED.name}?"))
    [(ids, start)] = write(tokenizer, [prompt], [REPLY])
    row = asked(tokenizer, ids, start, ASKED, REPLY)
    assert tokenizer.decode(ids[: row.start + 1]).endswith(("<|assistant|>", "Assistant:"))
    behind = [tokenizer.decode(ids[row.start + 1 : end + 1]).strip() for end in row.ends]
    assert behind == [" ".join(split(REPLY)[: i + 1]) for i in range(4)]
    assert [RELATIONS[i] for i in row.relations] == ["none", "on", "near", "off"]
    assert row.goals == (-100, row.goal, GOALS.index(NEAR), GOALS.index(FAR))


@pytest.mark.parametrize("reply", ["", "eggs the boil", "eggs. the boil"])
def test_words_without_a_mark_behind_them_are_not_asked_about(learned: Any, reply: str) -> None:
    tokenizer = for_chat(learned)
    [(ids, start)] = chats(tokenizer, [user(f"How do I {ASKED.name}?")], [reply])
    row = asked(tokenizer, ids, start, ASKED, reply)
    assert len(row.ends) == len(row.goals) == len(row.relations) == reply.count(".")


def test_medleys_hold_sentences_of_all_relations() -> None:
    world, counts = World(0), Counter[str]()
    draw = world.source("medleys")
    for _ in range(200):
        scene = world.scene(draw)
        counts.update(relation(scene.goal, sentence) for sentence in parse(medley(world, draw, scene)))
    assert all(counts[each] > 0.05 * counts.total() for each in RELATIONS)
    assert max(counts.values()) < 0.5 * counts.total()


def test_the_loss_of_the_questions_is_the_sum_of_their_means() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=0,
    )
    questions = Relevance(LlamaForSequenceClassification._from_config(config, attn_implementation="eager"), pad_id=0)
    batch = [Asked([5] * 6, 1, 3, (3, 5), (3, 4), (0, 1)), Asked([5] * 4, 0, 2, (2,), (-100,), (3,))]
    states = [torch.randn(2, 6, 16) for _ in range(3)]
    looks = torch.rand(2, 6, 6)

    def cost(head: Any, block: int, place: tuple[int, int], answer: int) -> float:
        state = states[block][place]
        answers: torch.Tensor = head(state / state.square().mean().sqrt()).log_softmax(-1)
        return -answers[answer].item()

    goals = [((0, 1), 3), ((1, 0), 2), ((0, 3), 3), ((0, 5), 4)]  # what is about nothing is not asked
    relations = [((0, 3), 0), ((0, 5), 1), ((1, 2), 3)]
    named = [cost(questions.goal, 1, place, goal) for place, goal in goals]
    told = [cost(questions.relation, 2, place, each) for place, each in relations]
    looked = [
        -serves * math.log(look) - (1 - serves) * math.log(1 - look)
        for serves, look in zip(SERVES.values(), (float(looks[0, 3, 1]), float(looks[0, 5, 1])), strict=False)
    ]
    expected = sum(sum(costs) / len(costs) for costs in (named, told, looked))
    assert questions.loss(batch, states, looks).item() == pytest.approx(expected, rel=1e-4)
    rewards, loss = questions(batch)
    assert rewards.shape == (2,)
    loss.backward()
    assert questions.model.model.layers[1].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_a_reward_is_asked_first_and_then_ranks_and_is_asked(learned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a training minimises: the questions of medleys alone, then those of the pairs beside the preferences."""
    seen: list[tuple[int, float, float]] = []

    def train(_: str, model: Any, batches: Any, loss_of: Any, *__: Any) -> float:
        batch = next(batches)
        rows = batch if isinstance(batch[0], Asked) else [row for side in zip(*batch, strict=True) for row in side]
        values, questions = model(rows)
        ranking = 0.0 if rows is batch else bradley_terry(values).item() - (1 - ASKED_WEIGHT) * questions.item()
        seen.append((len(rows), loss_of(batch).item(), questions.item() + ranking))
        return 0.0

    monkeypatch.setattr(rewards, "train", train)
    setting = Setting(World(0), set(), torch.device("cpu"), silent)
    lm = LlamaForCausalLM._from_config(blank(for_chat(learned)).config, attn_implementation="eager")
    rewards.train_guide(setting, lm, for_chat(learned), Recipe(1, 6, 0.0), Recipe(1, 4, 0.0))
    assert [rows for rows, *_ in seen] == [6, 8]
    for _, found, expected in seen:
        assert found == pytest.approx(expected, rel=1e-5)


def test_equal_seeds_draw_equal_pairs_and_none_opens_like_a_held_out_record() -> None:
    free = Setting(World(0), set(), torch.device("cpu"), silent)
    first = rewards.pairs(free, "some", Recipe(1, 30, 0.0))
    assert first == rewards.pairs(free, "some", Recipe(1, 30, 0.0))
    held = {opening(each.prompt) for each in first[:10]}
    kept = free._replace(held=held)
    prompts = [each.prompt for each in rewards.pairs(kept, "some", Recipe(1, 30, 0.0))]
    prompts += [prompt for prompt, _ in rewards.medleys(kept, "some", Recipe(1, 30, 0.0))]
    assert len(prompts) == 60
    assert not held & {opening(prompt) for prompt in prompts}
