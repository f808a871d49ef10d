"""A reward that keeps what it has read of prompts gives the scores that each text has when it is read whole."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from pooled import saved_pooled
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    PreTrainedModel,
)

from steerbench.contract import tiny
from steerbench.data import Dialogue, Turn, user
from steerbench.engine.kept_reward import KeptReward
from steerbench.models.checkpoint import find
from steerbench.models.pooled_block import HEAD, PooledForm
from steerbench.models.reward import RewardModel

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
COMMON = {"vocab_size": 320, "initializer_range": 0.3}
ONE = {"num_labels": 1, **COMMON}
LONG_ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES, **ONE)),
    "gpt2": lambda: GPT2ForSequenceClassification(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2, **ONE)
    ),
    "short": lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES, **ONE, max_position_embeddings=40)),
    "mistral": lambda: MistralForSequenceClassification(
        MistralConfig(**SIZES, **ONE, num_key_value_heads=2, sliding_window=8)
    ),
    "by length": lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES, **ONE, rope_parameters=LONG_ROPE)),
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES, **ONE)),
}
KEEPING = {"llama", "gpt2", "short", "pooled"}
DIALOGUES: list[Dialogue] = [
    user("Hi"),
    user("How do I bake a cake?"),
    (Turn("user", "Why is the sky blue?"), Turn("assistant", "It is not."), Turn("user", "But it is!")),
    user("Hi"),
]
REPLIES = [
    ["No.", "", "Q", "Qx0Zq"],
    [" Mix flour with eggs, and wait for an hour or so.", "Why?", "It is the light.", "Hello, and how are you?"],
    ["No.", "Bake it.", "\n", "Q" * 50],
]


def saved(folder: Path, name: str) -> str:
    if name == "pooled":
        return saved_pooled(folder)
    torch.manual_seed(0)
    MODELS[name]().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@contextmanager
def reading(reward: RewardModel) -> Iterator[list[int]]:
    """Yield how many columns each pass of a decoder has."""
    found: list[int] = []
    assert reward.backbone is not None
    handle = reward.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        yield found
    finally:
        handle.remove()


@pytest.mark.parametrize("name", [*MODELS, "pooled"])
def test_scores_are_those_of_texts_that_are_read_whole(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, name)
    kept, plain = KeptReward.load(folder), RewardModel.load(folder)
    assert kept.keeps == (name in KEEPING)
    assert (kept.revision, kept.name) == (plain.revision, plain.name)
    for replies in REPLIES:
        for batch_size in (1, 3, 16):
            kept.batch_size = batch_size
            torch.testing.assert_close(
                kept.score(DIALOGUES, replies), plain.score(DIALOGUES, replies), rtol=1e-4, atol=1e-5
            )
    assert kept.truncated == plain.truncated
    assert (kept.truncated > 0) == (name == "short")


@pytest.mark.parametrize("name", ["llama", "pooled"])
def test_prompts_are_read_once(name: str, tmp_path: Path) -> None:
    reward = KeptReward.load(saved(tmp_path, name))
    assert reward.keeps
    with reading(reward) as first:
        reward.score(DIALOGUES, REPLIES[0])
    with reading(reward) as then:
        reward.score(DIALOGUES, REPLIES[2])
    longest = len(reward.tokens(DIALOGUES[2:3], [""])[0])
    assert max(first) > longest - 8
    assert max(then) < 60, "the longest reply has fifty tokens"
    assert len(then) == 1


def test_where_there_is_no_room_texts_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, "llama")
    monkeypatch.setattr("steerbench.engine.kept_beginnings.KeptBeginnings.ready", lambda self, beginnings: False)
    kept = KeptReward.load(folder)
    vars(kept)["keeps"] = True
    torch.testing.assert_close(kept.score(DIALOGUES, REPLIES[1]), RewardModel.load(folder).score(DIALOGUES, REPLIES[1]))


def test_a_backbone_that_sees_ahead_is_told_by_trying(tmp_path: Path) -> None:
    """A head on the states of an encoder: keys and values of a beginning depend on what follows it."""
    base, folder = tmp_path / "base", tmp_path / "reward"
    torch.manual_seed(0)
    AutoModel.from_config(BertConfig(**SIZES, **COMMON)).save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    folder.mkdir()
    form = PooledForm(str(base), find(str(base)).revision, block=1, dtype="float32")
    (folder / "config.json").write_text(form.write(), encoding="utf-8")
    save_file({HEAD[0]: torch.randn(16), HEAD[1]: torch.randn(1)}, folder / "model.safetensors")
    kept, plain = KeptReward.load(str(folder)), RewardModel.load(str(folder))
    assert not kept.keeps
    torch.testing.assert_close(kept.score(DIALOGUES, REPLIES[1]), plain.score(DIALOGUES, REPLIES[1]))
