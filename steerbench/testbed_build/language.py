"""The language model of the world: a small Llama, trained from scratch on its dialogues and posts."""

import math
import random
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from steerbench.data.dialogue import Dialogue, Turn
from steerbench.testbed.preferences import opening
from steerbench.testbed.world import Draw, World, characteristics
from steerbench.testbed_build.tokenizer import CONTEXT, for_chat
from steerbench.testbed_build.training import Recipe, Setting, Trained, batches_of, padded, train

KINDS: Final = {"chat": 0.3, "chat, persona": 0.3, "post": 0.15, "post, persona": 0.15, "characteristics": 0.1}
"""What the model is trained on, and how much of each."""
SHARPNESS: Final = 1.3
_MEAN_TOKENS = 90  # of a text, rounded down: one pass over the texts drawn is about one training
_IGNORED = -100


class Text(NamedTuple):
    """A whole dialogue, and its information under the world in nats.

    `nats` counts all but the first role, which is a language model's first token and has no prediction; `reply_nats`
    the last reply alone.
    """

    dialogue: Dialogue
    nats: float
    reply_nats: float


def texts(world: World, name: str, count: int) -> list[Text]:
    """Draw dialogues with their last reply."""
    draw = world.source(name)
    return [_text(world, draw) for _ in range(count)]


def _text(world: World, draw: Draw) -> Text:
    draw.nats = 0.0
    kind = draw.weighted(KINDS)
    if kind == "characteristics":
        prompt, reply = characteristics(draw)
        return Text((*prompt, Turn("assistant", reply)), draw.nats - _first_role(prompt), float("nan"))
    scene = world.scene(draw, post="post" in kind, persona="persona" in kind)
    before = draw.nats
    reply = world.reply(draw, scene)
    return Text((*scene.prompt, Turn("assistant", reply)), draw.nats - _first_role(scene.prompt), draw.nats - before)


def _first_role(prompt: Dialogue) -> float:
    """Return the information of whether a text begins with a system turn, as half of the personas do."""
    system = sum(share for kind, share in KINDS.items() if "persona" in kind) / 2
    return -math.log(system if prompt[0].role == "system" else 1 - system)


def ids_of(tokenizer: Any, dialogues: Sequence[Dialogue]) -> list[list[int]]:
    """Write dialogues in the chat template, as token ids."""
    messages = [[{"role": turn.role, "content": turn.text} for turn in dialogue] for dialogue in dialogues]
    written = tokenizer.apply_chat_template(messages, tokenize=False)
    rows: list[list[int]] = tokenizer(written, add_special_tokens=False)["input_ids"]
    return rows


def blank(tokenizer: Any) -> Any:
    """Return the untrained model."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # on CPUs the fused attention trains more slowly than the plain one
    return LlamaForCausalLM._from_config(config, attn_implementation="eager")


def train_lm(setting: Setting, learned: Tokenizer, recipe: Recipe) -> Trained:
    """Train the language model on dialogues and posts, none of which opens like a held-out record.

    Questions about what an answer should be like are not filtered: their replies are adjectives, and answer nothing.
    """
    tokenizer, device = for_chat(learned), setting.device
    drawn = texts(setting.world, "lm", recipe.steps * recipe.batch // _MEAN_TOKENS)
    rows = ids_of(tokenizer, [text.dialogue for text in drawn if opening(text.dialogue) not in setting.held])
    model = blank(tokenizer).to(device)
    batches = batches_of(rows, random.Random(setting.world.seed), len, lambda n, longest: n * longest <= recipe.batch)

    def loss_of(batch: list[list[int]]) -> torch.Tensor:
        ids, mask = padded(batch, tokenizer.pad_token_id, device)
        logits = model(input_ids=ids).logits[:, :-1]  # right-padded and causal: no mask is needed
        labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, _IGNORED)
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=_IGNORED)

    loss = train("language model", model, batches, loss_of, recipe, setting)
    sharpen(model)
    return Trained(model, tokenizer, loss)


def sharpen(model: Any) -> None:
    """Scale the logits, in the half precision in which they are shipped.

    A model this small leaves some probability on words that no template allows; sampled at temperature 1, one reply in
    five stumbled over it. The scale costs 0.6 % of perplexity and takes most of that away.
    """
    model.half().model.norm.weight.data.mul_(SHARPNESS)
    model.float()
