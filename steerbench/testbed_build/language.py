"""The language model of the world: a small Llama, trained from scratch on its dialogues and posts."""

import math
import random
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from steerbench.data.dialogue import Dialogue, Turn
from steerbench.testbed.draw import Draw
from steerbench.testbed.instructions import Instruction
from steerbench.testbed.preferences import opening
from steerbench.testbed.world import World, characteristics
from steerbench.testbed_build.tokenizer import CONTEXT, END, for_chat
from steerbench.testbed_build.training import Recipe, Setting, Trained, batches_of, padded, train

KINDS: Final = {
    "chat": 0.15,
    "chat, instructed": 0.5,
    "post": 0.07,
    "post, instructed": 0.23,
    "characteristics": 0.05,
}
"""What the model is trained on, and how much of each."""
SHARPNESS: Final = 1.8
READING_WEIGHT: Final = 0.5
"""Of the loss of `Reading`, beside the model's own."""
_MEAN_TOKENS = 110  # of a text, rounded down: one pass over the texts drawn is about one training
_IGNORED = -100


class Text(NamedTuple):
    """A whole dialogue, and its information under the world in nats.

    `nats` counts all but the first role, which is a language model's first token and has no prediction; `reply_nats`
    the last reply alone.
    """

    dialogue: Dialogue
    nats: float
    reply_nats: float
    instruction: Instruction | None = None


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
    scene = world.scene(draw, post="post" in kind, instructed="instructed" in kind)
    before = draw.nats
    reply = world.reply(draw, scene)
    nats, reply_nats = draw.nats - _first_role(scene.prompt), draw.nats - before
    return Text((*scene.prompt, Turn("assistant", reply)), nats, reply_nats, scene.instruction)


def _first_role(prompt: Dialogue) -> float:
    """Return the information of whether a text begins with a system turn, as half of the instructed ones do."""
    system = sum(share for kind, share in KINDS.items() if "instructed" in kind) / 2
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
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # on CPUs the fused attention trains more slowly than the plain one
    return LlamaForCausalLM._from_config(config, attn_implementation="eager")


class Reading(nn.Module):
    """A language model that is asked what its instruction means, while it is trained.

    Behind `not` an adjective means its opposite. From replies alone, which are moved by an instruction a little, a
    training of this length does not find that out: the words alone foretell replies on average, and it stays with them.
    So linear maps are asked for the meaning: behind block `FRONT_BLOCK` at the end of the instruction, and behind
    `REPLY_BLOCK` where a reply begins. They are not shipped.
    """

    FRONT_BLOCK: Final = 3
    REPLY_BLOCK: Final = 4

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        width, classes = model.config.hidden_size, len(_ANSWERS) * _ATTRIBUTES
        self.front, self.reply = nn.Linear(width, classes), nn.Linear(width, classes)

    def loss(
        self, states: Sequence[torch.Tensor], fronts: torch.Tensor, replies: torch.Tensor, told: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean cross-entropy of both maps' answers.

        `states` are those of all blocks, each (batch, length, width); `fronts` and `replies` (batch, length) mark where
        the maps are asked; `told` (batch, attributes) says what is true of each row.
        """
        asked = ((self.front, states[self.FRONT_BLOCK], fronts), (self.reply, states[self.REPLY_BLOCK], replies))
        costs = [self._told_wrong(head, found[mask], told[mask.nonzero()[:, 0]]) for head, found, mask in asked]
        return torch.stack(costs).mean()

    def _told_wrong(self, head: nn.Linear, states: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        if not len(states):
            return states.sum()  # nothing was asked: zero
        normed = functional.rms_norm(states.float(), states.shape[-1:])
        answers = head(normed).float().unflatten(-1, (_ATTRIBUTES, len(_ANSWERS)))
        return functional.cross_entropy(answers.flatten(0, 1), told.flatten())


_ATTRIBUTES: Final = 4
_ANSWERS: Final = ("neither", "up", "down")


class Row(NamedTuple):
    """A text in tokens, and which way its instruction moves each attribute, as an index of `_ANSWERS`."""

    ids: list[int]
    told: tuple[int, ...] | None


def meaning(instruction: Instruction | None) -> tuple[int, ...] | None:
    """Return which way an instruction moves each attribute, as an index of neither, up, down."""
    if instruction is None:
        return None
    return tuple(1 if value > 0 else 2 if value < 0 else 0 for value in instruction.shift)


def train_lm(setting: Setting, learned: Tokenizer, recipe: Recipe) -> Trained:
    """Train the language model on dialogues and posts, none of which opens like a held-out record.

    Questions about what an answer should be like are not filtered: their replies are adjectives, and answer nothing.
    """
    tokenizer, device = for_chat(learned), setting.device
    drawn = texts(setting.world, "lm", recipe.steps * recipe.batch // _MEAN_TOKENS)
    drawn = [text for text in drawn if opening(text.dialogue) not in setting.held]
    ids = ids_of(tokenizer, [text.dialogue for text in drawn])
    rows = [Row(own, meaning(text.instruction)) for own, text in zip(ids, drawn, strict=True)]
    reading = Reading(blank(tokenizer)).to(device)
    rng = random.Random(setting.world.seed)
    batches = batches_of(rows, rng, lambda row: len(row.ids), lambda n, longest: n * longest <= recipe.batch)

    def loss_of(batch: list[Row]) -> torch.Tensor:
        ids, mask = padded([row.ids for row in batch], tokenizer.pad_token_id, device)
        found = reading.model(input_ids=ids, output_hidden_states=True)  # right-padded and causal: no mask is needed
        labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, _IGNORED)
        logits = found.logits[:, :-1].flatten(0, 1).float()
        own: torch.Tensor = functional.cross_entropy(logits, labels.flatten(), ignore_index=_IGNORED)
        return own + READING_WEIGHT * reading.loss(found.hidden_states, *asked_at(tokenizer, batch, ids))

    loss = train("language model", reading, batches, loss_of, recipe, setting)
    settle(reading.model)
    return Trained(reading.model, tokenizer, loss)


def asked_at(
    tokenizer: Any, batch: Sequence[Row], ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return where instructions end and where replies begin, both (batch, length), and what is told, (batch, 4).

    An instruction ends with its turn, or with the line in front of a question; rows without one are asked nothing.
    """
    newline, end, reply = tokenizer.convert_tokens_to_ids(["\u010a", END, "<|assistant|>"])
    instructed = torch.tensor([row.told is not None for row in batch], device=ids.device)[:, None]
    ends = (ids == newline) | (ids == end)
    fronts = ends & (ends.cumsum(1) == 1) & instructed
    told = torch.tensor([row.told or (0,) * _ATTRIBUTES for row in batch], device=ids.device)
    return fronts, (ids == reply) & instructed, told


def settle(model: Any) -> None:
    """Make the logits sharper and the states shorter, in the half precision in which the model is shipped.

    A model this small leaves some probability on words that no template allows; sampled at temperature 1, one reply in
    six stumbled over it at a scale of 1.3. Scaling by 1.8 costs 4 % of perplexity and takes most of that away.

    Muon leaves states that are ten times as long as those of other models. All that is written to the stream is divided
    by one number, so that a state in the middle has entries of size one; the norms take the number out again.
    """
    core = model.model
    scale = _size_in_the_middle(model)
    for layer in core.layers:
        for written in (layer.self_attn.o_proj, layer.mlp.down_proj):
            written.weight.data.div_(scale)
    core.embed_tokens.weight.data.div_(scale)
    model.config.rms_norm_eps /= scale**2
    for norm in core.modules():
        if hasattr(norm, "variance_epsilon"):
            norm.variance_epsilon = model.config.rms_norm_eps
    core.norm.weight.data.mul_(SHARPNESS * scale)  # the head is the embedding, which has become smaller
    model.half()
    model.float()


@torch.no_grad()
def _size_in_the_middle(model: Any) -> float:
    """Return the root mean square of a state's entry behind the middle block, over all tokens of the vocabulary."""
    ids = torch.arange(model.config.vocab_size, device=model.device).view(-1, 1)
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    return float(states[len(model.model.layers) // 2 + 1].float().square().mean().sqrt())
