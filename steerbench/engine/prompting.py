"""The prompt parts of a steering, applied: those that ask the model about a dialogue get their answers here."""

from collections.abc import Sequence
from functools import partial

import torch

from steerbench.data.dialogue import Dialogue
from steerbench.engine.activations import drawn_from
from steerbench.engine.finiteness import check_finite
from steerbench.models.batching import halving
from steerbench.models.language_model import LanguageModel, Tokens
from steerbench.models.modes import evaluating
from steerbench.models.pieces import logits_size
from steerbench.steering.instructions import AskedPart
from steerbench.steering.reweighting import Reweighting
from steerbench.steering.steering import Steering


def prompted(
    lm: LanguageModel, steering: Steering, dialogues: Sequence[Dialogue], batch_size: int = 16
) -> list[Dialogue]:
    """Return the dialogues that the model is to see: all prompt parts applied, in order.

    A part that asks is given one forward pass for each of its labels and dialogues, in batches, of the model as it is.
    Raises SteerbenchError where what is asked does not fit the context.
    """
    seen = list(dialogues)
    for part in steering.prompt:
        if isinstance(part, AskedPart):
            scores = label_scores(lm, part, seen, batch_size)
            seen = [part.answered(dialogue, row) for dialogue, row in zip(seen, scores, strict=True)]
        else:
            seen = [part(dialogue) for dialogue in seen]
    return seen


def prompt_tokens(
    lm: LanguageModel, steering: Steering, dialogues: Sequence[Dialogue], batch_size: int, new: int
) -> list[Tokens]:
    """Return what the model sees. Raises SteerbenchError if that, or what a twin sees, and `new` tokens do not fit."""
    seen = prompted(lm, steering, dialogues, batch_size)
    twins = [part.twin.prompt for part in steering.logits if isinstance(part, Reweighting) and part.beta and part.twin]
    for prompt in filter(None, twins):
        lm.check_fit([lm.tokens(d) for d in prompted(lm, Steering(prompt=prompt), seen, batch_size)], new)
    tokens = [lm.tokens(d) for d in seen]
    lm.check_fit(tokens, new)
    return tokens


def label_scores(
    lm: LanguageModel, part: AskedPart, dialogues: Sequence[Dialogue], batch_size: int = 16
) -> list[list[float]]:
    """Return the log-probability per token of each label as the model's reply, a list for each dialogue."""
    questions = [part.question(dialogue) for dialogue in dialogues]
    tokens = [lm.tokens(question, label) for question in questions for label in part.labels]
    lm.check_fit(tokens, 0)
    found: dict[int, float] = {}
    for _, means in halving(lm.batches(tokens, batch_size, size=logits_size(lm.model)), partial(_means, lm, tokens)):
        found |= means
    n = len(part.labels)
    return [[found[i + k] for k in range(n)] for i in range(0, len(tokens), n)]


@torch.no_grad()
def _means(lm: LanguageModel, tokens: Sequence[Tokens], rows: Sequence[int]) -> dict[int, float]:
    """Return the mean log-probability of the response's tokens, for some of the texts."""
    batch = lm.right_padded([tokens[i] for i in rows])
    with evaluating(lm.model):
        out = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    means = {}
    for i, row in zip(rows, out, strict=True):
        logits = row[drawn_from(tokens[i])].float()
        check_finite(logits, "the language model itself")
        target = torch.tensor(tokens[i].response, device=logits.device, dtype=torch.long)[:, None]
        means[i] = float(logits.log_softmax(-1).gather(-1, target).mean())
    return means
