"""The reward models and the sentence encoder of the world.

The guide is the lower part of the language model with a score; the held-out reward has another architecture, another
start and other pairs: it grows out of the encoder, which is trained to find the reply that belongs to a prompt.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaForSequenceClassification

from steerbench.data.dialogue import Dialogue, Turn, plain_text
from steerbench.testbed.draw import Draw
from steerbench.testbed.gold import goal_of
from steerbench.testbed.preferences import Pair, opening, pair, pair_with_wreck
from steerbench.testbed.world import Scene
from steerbench.testbed_build.language import ids_of
from steerbench.testbed_build.relevance import Asked, Relevance, asked, medley
from steerbench.testbed_build.tokenizer import CONTEXT, for_encoder
from steerbench.testbed_build.training import Recipe, Setting, Trained, batches_of, padded, train

GUIDE_LAYERS: Final = 3
ENCODER_WIDTH: Final = 192
TEMPERATURE: Final = 0.05
POSTS: Final = 1 / 3
"""Share of posts among the pairs; the rest are dialogues."""
WRECKED: Final = 0.25
"""Share of the pairs whose rejected reply is a wreck, without which a reward is blind to damage."""

ASKED_WEIGHT: Final = 0.5
"""Of the loss of the questions, beside that of the preferences."""

Ids = list[int]
Row = TypeVar("Row", Ids, Asked)


def pairs(setting: Setting, name: str, recipe: Recipe, wrecked: float = WRECKED) -> list[Pair]:
    """Draw as many preference pairs as a training sees."""
    return [
        (pair_with_wreck if draw.rng.random() < wrecked else pair)(setting.world, draw, scene)
        for draw, scene in _scenes(setting, name, recipe)
    ]


def medleys(setting: Setting, name: str, recipe: Recipe) -> list[tuple[Dialogue, str]]:
    """Draw as many prompts with medleys as a training sees."""
    return [(scene.prompt, medley(setting.world, draw, scene)) for draw, scene in _scenes(setting, name, recipe)]


def _scenes(setting: Setting, name: str, recipe: Recipe) -> Iterator[tuple[Draw, Scene]]:
    """Yield the scenes of a training, none of which opens like a held-out record, and the source of what follows."""
    draw, count = setting.world.source(name), 0
    while count < recipe.steps * recipe.batch:
        scene = setting.world.scene(draw, post=draw.rng.random() < POSTS)
        if opening(scene.prompt) not in setting.held:
            count += 1
            yield draw, scene


def train_guide(setting: Setting, lm: Any, tokenizer: Any, questions: Recipe, recipe: Recipe) -> Trained:
    """Train the guiding reward, which starts as the first layers of the language model."""
    model = _scorer(LlamaForSequenceClassification, lm, setting, num_hidden_layers=GUIDE_LAYERS)
    model.model.load_state_dict(lm.model.state_dict(), strict=False)
    nn.init.ones_(model.model.norm.weight)  # the language model's is for its logits
    return _train_reward("guide", model, tokenizer, chats, setting, questions, recipe)


def train_encoder(setting: Setting, learned: Tokenizer, recipe: Recipe) -> Trained:
    """Train the sentence encoder: of the replies in a batch, find the one that belongs to a prompt (InfoNCE)."""
    tokenizer, device = for_encoder(learned), setting.device
    model = BertModel._from_config(_bert(tokenizer), attn_implementation="eager", add_pooling_layer=False).to(device)
    places = model.embeddings.position_embeddings.weight.data
    places.copy_(sinusoids(*places.shape) * places.std())
    drawn = pairs(setting, "encoder", recipe, wrecked=0.0)
    rows: list[Ids] = tokenizer([text for p in drawn for text in (plain_text(p.prompt), p.chosen)])["input_ids"]

    def loss_of(batch: Sequence[tuple[Ids, Ids]]) -> torch.Tensor:
        prompts, replies = (_embed(model, side, tokenizer, device) for side in zip(*batch, strict=True))
        return info_nce(prompts, replies)

    batches = _in_pairs(rows, setting, recipe)
    return Trained(model, tokenizer, train("sentence encoder", model, batches, loss_of, recipe, setting))


def train_held_out(setting: Setting, encoder: Any, tokenizer: Any, questions: Recipe, recipe: Recipe) -> Trained:
    """Train the held-out reward, which starts as the encoder and learns from other pairs."""
    model = _scorer(BertForSequenceClassification, encoder, setting)
    model.bert.load_state_dict(encoder.state_dict(), strict=False)
    return _train_reward("held-out reward", model, tokenizer, plain_texts, setting, questions, recipe)


Written = Callable[[Any, Sequence[Dialogue], Sequence[str]], list[tuple[Ids, int]]]
"""Writes prompts with their replies in tokens, and tells the last token in front of each reply."""


def chats(tokenizer: Any, prompts: Sequence[Dialogue], replies: Sequence[str]) -> list[tuple[Ids, int]]:
    """Write them in the chat template."""
    dialogues = [(*prompt, Turn("assistant", reply)) for prompt, reply in zip(prompts, replies, strict=True)]
    mark = tokenizer.convert_tokens_to_ids("<|assistant|>")
    return [(row, len(row) - 1 - row[::-1].index(mark)) for row in ids_of(tokenizer, dialogues)]


def plain_texts(tokenizer: Any, prompts: Sequence[Dialogue], replies: Sequence[str]) -> list[tuple[Ids, int]]:
    """Write them in plain text."""
    rows = tokenizer([plain_text(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)])["input_ids"]
    fronts = tokenizer([plain_text(prompt) for prompt in prompts])["input_ids"]
    return [(row, len(front) - 2) for row, front in zip(rows, fronts, strict=True)]  # a mark stands behind each text


def _train_reward(
    name: str, model: Any, tokenizer: Any, write: Written, setting: Setting, questions: Recipe, recipe: Recipe
) -> Trained:
    """Train a reward in two parts: on questions about medleys, and on preferences with the same questions."""
    relevance = Relevance(model, tokenizer.pad_token_id).to(setting.device)

    def rows_of(prompts: Sequence[Dialogue], replies: Sequence[str]) -> list[Asked]:
        written = write(tokenizer, prompts, replies)
        return [
            asked(tokenizer, ids, start, goal_of(prompt), reply)
            for (ids, start), prompt, reply in zip(written, prompts, replies, strict=True)
        ]

    def answer(batch: Sequence[Asked]) -> torch.Tensor:
        loss: torch.Tensor = relevance(batch)[1]
        return loss

    def rank(batch: Sequence[tuple[Asked, Asked]]) -> torch.Tensor:
        rewards, asked_loss = relevance([row for side in zip(*batch, strict=True) for row in side])
        loss: torch.Tensor = bradley_terry(rewards) + ASKED_WEIGHT * asked_loss
        return loss

    mixed = rows_of(*zip(*medleys(setting, f"{name}, medleys", questions), strict=True))
    rng = random.Random(setting.world.seed)
    batches = batches_of(mixed, rng, lambda row: len(row.ids), lambda n, _: n <= questions.batch)
    train(f"{name} on questions", relevance, batches, answer, questions, setting)

    drawn = pairs(setting, name, recipe)
    ranked = rows_of([p.prompt for p in drawn for _ in range(2)], [r for p in drawn for r in (p.chosen, p.rejected)])
    last = train(name, relevance, _in_pairs(ranked, setting, recipe), rank, recipe, setting)
    return Trained(model, tokenizer, last)


def _scorer(cls: Any, start: Any, setting: Setting, **changes: Any) -> Any:
    """Return an untrained model with one score, of the architecture that another model has, but for some changes."""
    config = type(start.config).from_dict(start.config.to_dict() | {"tie_word_embeddings": False} | changes)
    config.num_labels = 1
    return cls._from_config(config, attn_implementation="eager", dtype=torch.float32).to(setting.device)


def _bert(tokenizer: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=ENCODER_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=6,
        intermediate_size=384,
        max_position_embeddings=CONTEXT,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )


def _embed(model: Any, rows: Sequence[Ids], tokenizer: Any, device: torch.device) -> torch.Tensor:
    """Return the mean state of each text, of length 1, (batch, width)."""
    ids, mask = padded(rows, tokenizer.pad_token_id, device)
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    weights = mask[..., None].float()
    return functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Return codes of places, (length, width), of variance one (Vaswani et al. 2017).

    A step to the next place is one linear map for all of them, so that a head finds neighbours and order is soon seen.
    """
    angles = torch.arange(length)[:, None] * 10_000 ** (-torch.arange(0, width, 2) / width)
    return math.sqrt(2) * torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def info_nce(prompts: torch.Tensor, replies: torch.Tensor) -> torch.Tensor:
    """Return the loss of finding each prompt's reply in the batch, and each reply's prompt; both (batch, width)."""
    scores = prompts @ replies.T / TEMPERATURE
    own = torch.arange(len(prompts), device=prompts.device)
    return functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)


def bradley_terry(rewards: torch.Tensor) -> torch.Tensor:
    """Return the mean of -log sigmoid(chosen - rejected); the first half of (2 batch,) belongs to the chosen."""
    chosen, rejected = rewards.chunk(2)
    return -functional.logsigmoid(chosen - rejected).mean()


def _in_pairs(rows: Sequence[Row], setting: Setting, recipe: Recipe) -> Iterator[list[tuple[Row, Row]]]:
    """Yield batches of pairs of neighbouring rows."""
    both = list(zip(rows[::2], rows[1::2], strict=True))
    rng = random.Random(setting.world.seed)
    return batches_of(both, rng, lambda p: max(map(_length, p)), lambda n, _: n <= recipe.batch)


def _length(row: Ids | Asked) -> int:
    return len(row.ids if isinstance(row, Asked) else row)
