"""The guide on texts that share their beginnings, against each text read alone from its beginning."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pooled import saved_pooled
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
)

from steerbench import Decoding, FitContext, LanguageModel, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.engine import guide_reading
from steerbench.engine.guide_reading import GuideReader, SharedReading, Text, can_share
from steerbench.engine.logits import response_logits
from steerbench.errors import SteerbenchError
from steerbench.models.checkpoint import find
from steerbench.models.language_model import Tokens
from steerbench.models.reward import RewardModel
from steerbench.models.reward_text import READ, REPLY

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
COMMON = {"vocab_size": 320, "num_labels": 1, "initializer_range": 0.3}
MODELS = {
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES, **COMMON)),
    "gpt2": lambda: GPT2ForSequenceClassification(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2, **COMMON)
    ),
    "mistral": lambda: MistralForSequenceClassification(
        MistralConfig(**SIZES, **COMMON, num_key_value_heads=2, sliding_window=8)
    ),
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES, **COMMON)),
}
PROMPTS = [user("How do I bake a cake?"), user("Hi"), user("Why is the sky blue?")]


def made(folder: Path, name: str) -> RewardModel:
    if name == "pooled":
        return RewardModel.load(saved_pooled(folder))
    torch.manual_seed(0)
    MODELS[name]().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return RewardModel.load(str(folder))


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RewardModel]:
    return {name: made(tmp_path_factory.mktemp(name), name) for name in [*MODELS, "pooled"]}


def marked(ids: list[int]) -> Text:
    """Say that the reply begins behind the second token and ends before the last one, where there are as many."""
    return Text(ids, [READ, READ, *[REPLY] * (len(ids) - 3), READ][: len(ids)])


def steps(seed: int) -> Iterator[list[list[list[int]]]]:
    """Yield texts of three rows: they grow, lose their last tokens, begin anew, and one of them ends."""
    draw = random.Random(seed)
    shared = [[draw.randrange(3, 320) for _ in range(n)] for n in (1, 9, 30)]
    for step in range(8):
        texts = []
        for row, begun in enumerate(shared):
            ends = [[draw.randrange(3, 9) for _ in range(draw.randint(1, 3))] for _ in range(5)]
            texts.append([] if row == 1 and step > 4 else [begun + end for end in ends])
            if texts[-1]:
                shared[row] = draw.choice(texts[-1])[: -1 if step % 3 == 2 else None]
        if step == 5:
            shared[2] = shared[2][:2]
        yield texts


@pytest.mark.parametrize("at_once", [2, 256])
@pytest.mark.parametrize("name", ["llama", "gpt2", "pooled"])
def test_shared_reading_gives_what_each_text_gives_alone(
    rewards: dict[str, RewardModel], name: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guide_reading, "_AT_ONCE", at_once)
    monkeypatch.setattr(guide_reading, "_SPARE", 8)  # so that it begins anew on the way
    reward = rewards[name]
    assert can_share(reward)
    reading = SharedReading(reward)
    for step in steps(at_once):
        rows = [[marked(ids) for ids in row] for row in step]
        alone = torch.cat([reward.read([list(text.ids)], [list(text.marks)]) for row in rows for text in row])
        torch.testing.assert_close(reading.scores(rows), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "pooled"])
def test_rows_that_stay_keep_what_was_read_of_them(rewards: dict[str, RewardModel], name: str) -> None:
    reward, reading = rewards[name], SharedReading(rewards[name])
    begun = [list(range(i, i + 9)) for i in (3, 40, 80)]
    reading.scores([[marked([*ids, z]) for z in range(3, 6)] for ids in begun])
    reading.keep([2, 1])
    rows = [[marked([*begun[i], 7, z]) for z in range(3, 6)] for i in (2, 1)]
    alone = torch.cat([reward.read([list(text.ids)], [list(text.marks)]) for row in rows for text in row])
    torch.testing.assert_close(reading.scores(rows), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "pooled"])
def test_what_is_shared_is_read_once(rewards: dict[str, RewardModel], name: str) -> None:
    reward, begun = rewards[name], list(range(3, 53))
    reading = SharedReading(reward)
    with columns_read(reward) as read:
        reading.scores([[marked([*begun, z]) for z in range(10)]] * 2)
        reading.scores([[marked([*begun, 7, z, 2]) for z in range(10)]] * 2)
    assert read == [60, 1 + 20]


@contextmanager
def columns_read(reward: RewardModel) -> Iterator[list[int]]:
    assert reward.backbone is not None
    found: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        found.append(kwargs["input_ids"].shape[1])

    handle = reward.backbone.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["mistral", "bert"])
def test_what_cannot_share_is_read_from_its_beginning(rewards: dict[str, RewardModel], name: str) -> None:
    """A window that moves on, and a model whose tokens see what follows them."""
    reward = rewards[name]
    assert not can_share(reward)
    texts = [["Yes.", "No."], [], ["Blue"]]
    found = GuideReader(reward).scores(PROMPTS, texts)
    assert torch.equal(found, reward.score([PROMPTS[0], PROMPTS[0], PROMPTS[2]], ["Yes.", "No.", "Blue"]))


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_positions_that_turn_with_the_length_of_a_text_are_read_from_its_beginning(tmp_path: Path, rope: str) -> None:
    """Keys that were held before a text passed the length that it was trained on would be of other angles."""
    long = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 64}
    more = {"rope_type": rope, "rope_theta": 1e4, "factor": 4.0, **(long if rope == "longrope" else {})}
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, **COMMON, max_position_embeddings=64, rope_parameters=more)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    reward = RewardModel.load(str(tmp_path))
    reward.limit = 256
    reader = GuideReader(reward)
    for n in (5, 60, 90):
        texts = ["a" * n + z for z in "xy"]
        alone = torch.cat([reward.score(PROMPTS[:1], [text]) for text in texts])
        torch.testing.assert_close(reader.scores(PROMPTS[:1], [texts]), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "pooled"])
def test_texts_that_are_cut_at_different_places_are_not_one_tree(tmp_path: Path, name: str) -> None:
    """They share no beginning: a pass over all their tokens would be as wide as all of them together."""
    reward = made(tmp_path, name)
    reward.limit = 100
    texts = [["b" * 150 + "a" * n for n in range(1, 9)], ["a", "b", "c" * 99], []]
    prompts = [p for p, row in zip(PROMPTS, texts, strict=True) for _ in row]
    with columns_read(reward) as read:
        found = GuideReader(reward).scores(PROMPTS, texts)
    assert max(read) <= reward.limit
    torch.testing.assert_close(found, reward.score(prompts, [t for row in texts for t in row]), atol=1e-4, rtol=1e-4)


def test_a_reward_that_takes_one_text_at_a_time_is_given_no_more(tmp_path: Path) -> None:
    reward = made(tmp_path, "llama")
    reward.largest_batch = 1
    texts = [["Yes.", "No"], ["Blue"]]
    found = GuideReader(reward).scores(PROMPTS[:2], texts)
    assert torch.equal(found, reward.score([PROMPTS[0], PROMPTS[0], PROMPTS[1]], ["Yes.", "No", "Blue"]))
    assert not can_share(reward)


def test_a_text_that_is_too_long_is_read_and_counted_as_elsewhere(tmp_path: Path) -> None:
    reward = made(tmp_path, "llama")
    reward.limit = 20
    reader, texts = GuideReader(reward), ["a" * 30 + z for z in "xyz"]
    found = reader.scores(PROMPTS[:1], [texts])
    assert reward.truncated == 3
    torch.testing.assert_close(found, reward.score([PROMPTS[0]] * 3, texts), atol=1e-5, rtol=1e-5)


def test_scores_that_are_not_finite_are_told(tmp_path: Path) -> None:
    reward = made(tmp_path, "llama")
    reader = GuideReader(reward)
    assert reward.backbone is not None
    next(reward.backbone.parameters()).data.fill_(torch.nan)
    with pytest.raises(SteerbenchError, match="not finite"):
        reader.scores(PROMPTS[:1], [["Yes."]])


def test_a_mean_over_the_reply_reads_nothing_behind_it(tmp_path: Path) -> None:
    """What a template writes behind every reply would be read for each candidate anew."""
    folder = saved_pooled(tmp_path)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} (all of it)\n{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "base")
    written = json.loads((tmp_path / "reward/config.json").read_text())
    revision = find(str(tmp_path / "base")).revision
    (tmp_path / "reward/config.json").write_text(json.dumps(written | {"backbone_revision": revision}))
    reward = RewardModel.load(folder)
    with columns_read(reward) as read:
        found = GuideReader(reward).scores(PROMPTS[:1], [["Yes.", "Yes,"]])
    torch.testing.assert_close(found, reward.score(PROMPTS[:1] * 2, ["Yes.", "Yes,"]), atol=1e-5, rtol=1e-5)
    before = reward.text(PROMPTS[0], "Yes").removesuffix(" (all of it)\n")
    assert read[-1] == len(tokenizer(before, add_special_tokens=False).input_ids) + 2
    reward.limit, long = (
        50,
        ["b" * 60 + "a" * n for n in range(1, 9)],
    )  # no tree, though the end that is left out is short
    with columns_read(reward) as read:
        found = GuideReader(reward).scores(PROMPTS[:1], [long])
    assert max(read) <= reward.limit
    torch.testing.assert_close(found, reward.score(PROMPTS[:1] * 8, long), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "bert", "pooled"])
def test_args_under_a_reward_model_is_its_formula(
    llama: LanguageModel, rewards: dict[str, RewardModel], name: str
) -> None:
    reward, greedy = rewards[name], Decoding(max_new_tokens=8)
    args: Any = load("methods", "args")
    steering: Steering = args(w=40.0, k=5).fit(FitContext(lm=llama, examples=[], reward=reward))
    found = generate(llama, PROMPTS, steering, greedy, reward=reward)
    for dialogue, response in zip(PROMPTS, found, strict=True):
        prompt, ids = list(llama.tokens(dialogue).prompt), list[int]()
        steps = []
        while len(ids) < 8 and not set(ids) & set(llama.end_ids):
            steps.append(naive(llama, reward, dialogue, prompt, ids))
            ids.append(int(steps[-1].argmax()))
        assert llama.cut(ids) == response
        given = Tokens(tuple(prompt), tuple(ids))
        ((_, logits),) = response_logits(llama, [given], steering, dialogues=[dialogue], reward=reward)
        torch.testing.assert_close(logits, torch.stack(steps), atol=1e-2, rtol=1e-4)
    assert found != generate(llama, PROMPTS, Steering(), greedy)


@torch.no_grad()
def naive(lm: LanguageModel, reward: RewardModel, dialogue: Any, prompt: list[int], ids: list[int]) -> Tensor:
    logits: Tensor = lm.model(torch.tensor([prompt + ids])).logits[0, -1]
    best = torch.full_like(logits, -torch.inf)
    for z in logits.argsort(descending=True)[:5].tolist():
        best[z] = logits[z] + 40.0 * float(reward.score([dialogue], [lm.cut([*ids, z]).text]))
    return best
