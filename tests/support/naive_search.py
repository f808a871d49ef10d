"""Search over blocks, written naively: one prompt, one candidate, one token at a time, all recomputed for each."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steerbench import Decoding, LanguageModel, Steering
from steerbench.data import Dialogue
from steerbench.learn import Response, Tokens, response_logits
from steerbench.seeds import generator_for
from steerbench.steering.blocks import Blocks


class Text(NamedTuple):
    """A response so far: how many of its ids are kept, the rest being lookahead, and the log-prob of those."""

    ids: list[int]
    kept: int
    log_prob: float


def next_logits(lm: LanguageModel, prompt: tuple[int, ...], ids: Sequence[int], steering: Steering) -> Tensor:
    """Return the logits behind a prefix: those of a token that is put behind it."""
    ((_, logits),) = response_logits(lm, [Tokens(prompt, (*ids, 0))], steering)
    return logits[-1]


def numbers(dialogue: Dialogue, decoding: Decoding, *name: object) -> Tensor:
    """Return what the tokens of a candidate are drawn by, from first to last."""
    generator = generator_for(0, *name, dialogue)
    return torch.stack(
        [torch.rand((), generator=generator, dtype=torch.float64) for _ in range(decoding.max_new_tokens)]
    )


def is_finished(lm: LanguageModel, ids: Sequence[int], decoding: Decoding) -> bool:
    ended = bool(ids) and ids[-1] in lm.end_ids
    return ended or len(ids) >= decoding.max_new_tokens or lm.cut(ids).finish == "turn"


def drawn(
    lm: LanguageModel,
    prompt: tuple[int, ...],
    begun: Sequence[int],
    blocks: Blocks,
    decoding: Decoding,
    u: Tensor,
    steering: Steering = Steering(),
    *,
    rank: int | None = None,
) -> Text:
    """Draw one block behind what there is, and the lookahead behind the block."""
    ids, kept, log_prob = list(begun), -1, 0.0
    while len(ids) < decoding.max_new_tokens and not (ids[len(begun) :] and ids[-1] in lm.end_ids):
        logits = next_logits(lm, prompt, ids, steering)
        if kept < 0 and len(ids) > len(begun) and ends(lm, ids, len(ids) - len(begun), blocks, logits):
            kept = len(ids)
        if kept >= 0 and len(ids) - kept == blocks.lookahead:
            break
        if rank is not None and len(ids) == len(begun):
            token = int(logits.sort(descending=True).indices[rank])
        elif decoding.temperature == 0:
            token = int(logits.argmax())
        else:
            p = (logits / decoding.temperature).double().softmax(-1).cumsum(-1)
            token = int(torch.searchsorted(p, u[len(ids)] * p[-1], right=True))
        log_prob += float(logits.log_softmax(-1)[token]) if kept < 0 else 0.0
        ids.append(token)
    return Text(ids, len(ids) if kept < 0 else kept, log_prob)


def ends(lm: LanguageModel, ids: Sequence[int], length: int, blocks: Blocks, logits: Tensor) -> bool:
    if length == blocks.tokens:
        return True
    if length < blocks.least:
        return False
    if blocks.sentence and lm.tokenizer.decode([ids[-1]]).rstrip().endswith((".", "!", "?")):
        return True
    p = logits.softmax(-1)
    return blocks.entropy is not None and float(-(p * p.log()).sum()) >= blocks.entropy


Choose = Callable[[list[Text], int], int | None]
"""Which of the candidates is kept, at this attempt; None: draw them again."""


def search(
    lm: LanguageModel,
    dialogue: Dialogue,
    n: int,
    blocks: Blocks,
    decoding: Decoding,
    choose: Choose,
    steering: Steering = Steering(),
    *,
    redraws: bool = False,
) -> Response:
    """Keep one of n candidates, block by block."""
    prompt = lm.tokens(steering.apply_prompt(dialogue)).prompt
    ids: list[int] = []
    block = attempt = 0
    fresh = redraws or (n > 1 and (blocks.entropy is not None or blocks.sentence or blocks.lookahead > 0))
    while True:
        texts = []
        for k in range(n):
            name: tuple[Any, ...] = ("candidate", 0, attempt * n + k)
            name += ("block", block) if fresh and block else ()
            u = numbers(dialogue, decoding, *name)
            texts.append(drawn(lm, prompt, ids, blocks, decoding, u, steering))
        chosen = choose(texts, attempt)
        if chosen is None:
            attempt += 1
            continue
        ids, block, attempt = texts[chosen].ids[: texts[chosen].kept], block + 1, 0
        if is_finished(lm, ids, decoding):
            return lm.cut(ids)
