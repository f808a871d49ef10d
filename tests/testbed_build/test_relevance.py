"""What the rewards are asked beside their pairs: where, about what, and at what cost."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from steerbench.data.dialogue import Dialogue, user
from steerbench.testbed.gold import parse, split
from steerbench.testbed.topics import GOALS, HARMFUL
from steerbench.testbed.world import World
from steerbench.testbed_build.language import texts
from steerbench.testbed_build.relevance import RELATIONS, SERVES, Asked, Relevance, asked, medley, relation
from steerbench.testbed_build.rewards import chats, plain_texts
from steerbench.testbed_build.tokenizer import for_chat, for_encoder, learn

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
