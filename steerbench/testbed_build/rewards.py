"""The reward models and the sentence encoder of the world.

The guide is the lower part of the language model with a score; the held-out reward has another architecture, another
start and other pairs: it grows out of the encoder, which is trained to find the reply that belongs to a prompt.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaForSequenceClassification

from steerbench.data.dialogue import Turn, plain_text
from steerbench.testbed.preferences import Pair, opening, pair, pair_with_wreck
from steerbench.testbed_build.language import ids_of
from steerbench.testbed_build.tokenizer import CONTEXT, for_encoder
from steerbench.testbed_build.training import Recipe, Setting, Trained, batches_of, padded, train

GUIDE_LAYERS: Final = 2
ENCODER_WIDTH: Final = 192
TEMPERATURE: Final = 0.05
POSTS: Final = 1 / 3
"""Share of posts among the pairs; the rest are dialogues."""
WRECKED: Final = 0.25
"""Share of the pairs whose rejected reply is a wreck, without which a reward is blind to damage."""

Ids = list[int]
IdPair = tuple[Ids, Ids]


def pairs(setting: Setting, name: str, recipe: Recipe, wrecked: float = WRECKED) -> list[Pair]:
    """Draw as many preference pairs as a training sees, none of whose dialogues opens like a held-out one."""
    draw = setting.world.source(name)
    found: list[Pair] = []
    while len(found) < recipe.steps * recipe.batch:
        scene = setting.world.scene(draw, post=draw.rng.random() < POSTS)
        if opening(scene.prompt) not in setting.held:
            judged = pair_with_wreck if draw.rng.random() < wrecked else pair
            found.append(judged(setting.world, draw, scene))
    return found


def train_guide(setting: Setting, lm: Any, tokenizer: Any, recipe: Recipe) -> Trained:
    """Train the guiding reward, which starts as the first layers of the language model."""
    model = _scorer(LlamaForSequenceClassification, lm, setting, num_hidden_layers=GUIDE_LAYERS)
    model.model.load_state_dict(lm.model.state_dict(), strict=False)
    nn.init.ones_(model.model.norm.weight)  # the language model's is for its logits
    drawn = pairs(setting, "guide", recipe)
    dialogues = [(*p.prompt, Turn("assistant", reply)) for p in drawn for reply in (p.chosen, p.rejected)]
    loss_of = _ranking(model, tokenizer, setting)
    batches = _in_pairs(ids_of(tokenizer, dialogues), setting, recipe)
    return Trained(model, tokenizer, train("guiding reward", model, batches, loss_of, recipe, setting))


def train_encoder(setting: Setting, learned: Tokenizer, recipe: Recipe) -> Trained:
    """Train the sentence encoder: of the replies in a batch, find the one that belongs to a prompt (InfoNCE)."""
    tokenizer, device = for_encoder(learned), setting.device
    model = BertModel._from_config(_bert(tokenizer), attn_implementation="eager", add_pooling_layer=False).to(device)
    drawn = pairs(setting, "encoder", recipe, wrecked=0.0)
    rows = tokenizer([text for p in drawn for text in (plain_text(p.prompt), p.chosen)])["input_ids"]

    def loss_of(batch: Sequence[IdPair]) -> torch.Tensor:
        prompts, replies = (_embed(model, side, tokenizer, device) for side in zip(*batch, strict=True))
        return info_nce(prompts, replies)

    batches = _in_pairs(rows, setting, recipe)
    return Trained(model, tokenizer, train("sentence encoder", model, batches, loss_of, recipe, setting))


def train_held_out(setting: Setting, encoder: Any, tokenizer: Any, recipe: Recipe) -> Trained:
    """Train the held-out reward, which starts as the encoder and learns from other pairs."""
    model = _scorer(BertForSequenceClassification, encoder, setting)
    model.bert.load_state_dict(encoder.state_dict(), strict=False)
    drawn = pairs(setting, "held-out reward", recipe)
    rows = tokenizer([plain_text(p.prompt, reply) for p in drawn for reply in (p.chosen, p.rejected)])["input_ids"]
    loss_of = _ranking(model, tokenizer, setting)
    batches = _in_pairs(rows, setting, recipe)
    return Trained(model, tokenizer, train("held-out reward", model, batches, loss_of, recipe, setting))


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


def info_nce(prompts: torch.Tensor, replies: torch.Tensor) -> torch.Tensor:
    """Return the loss of finding each prompt's reply in the batch, and each reply's prompt; both (batch, width)."""
    scores = prompts @ replies.T / TEMPERATURE
    own = torch.arange(len(prompts), device=prompts.device)
    return functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)


def bradley_terry(rewards: torch.Tensor) -> torch.Tensor:
    """Return the mean of -log sigmoid(chosen - rejected); the first half of (2 batch,) belongs to the chosen."""
    chosen, rejected = rewards.chunk(2)
    return -functional.logsigmoid(chosen - rejected).mean()


def _ranking(model: Any, tokenizer: Any, setting: Setting) -> Callable[[Sequence[IdPair]], torch.Tensor]:
    """Return the loss of a reward model on a batch of pairs."""

    def loss_of(batch: Sequence[IdPair]) -> torch.Tensor:
        rows = [row for side in zip(*batch, strict=True) for row in side]
        ids, mask = padded(rows, tokenizer.pad_token_id, setting.device)
        return bradley_terry(model(input_ids=ids, attention_mask=mask).logits[:, 0].float())

    return loss_of


def _in_pairs(rows: Sequence[Ids], setting: Setting, recipe: Recipe) -> Iterator[list[IdPair]]:
    """Yield batches of pairs of neighbouring rows."""
    both = list(zip(rows[::2], rows[1::2], strict=True))
    rng = random.Random(setting.world.seed)
    return batches_of(both, rng, lambda p: max(map(len, p)), lambda n, _: n <= recipe.batch)
