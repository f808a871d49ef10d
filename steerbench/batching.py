"""Texts through a frozen model: token ids, padded batches of similar length, results in the original order."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from steerbench.progress import Advance

Side = Literal["left", "right"]


class Tokens(NamedTuple):
    """Token ids of texts."""

    rows: list[list[int]]
    truncated: int
    """Number of texts that were cut."""


def tokenize(
    tokenizer: Any, texts: Sequence[str], *, limit: int | None, cut: Side, special_tokens: bool = True
) -> Tokens:
    """Return the ids of each text, at most `limit` of them, cut on the given side.

    Special tokens that the tokenizer adds (BOS, CLS, SEP) survive the cut.
    """
    if not texts:
        return Tokens([], 0)
    options = {"add_special_tokens": special_tokens, "verbose": False}
    rows: list[list[int]] = tokenizer(list(texts), **options)["input_ids"]
    long = [i for i, row in enumerate(rows) if limit is not None and len(row) > limit]
    tokenizer.truncation_side = cut
    for i in long:
        rows[i] = tokenizer(texts[i], truncation=True, max_length=limit, **options)["input_ids"]
    return Tokens(rows, len(long))


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right-padded ids and the attention mask, both (batch, longest row). A row without tokens is one pad."""
    rows = [row or [pad_id] for row in rows]
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


@torch.inference_mode()
def in_batches(
    rows: Sequence[Sequence[int]],
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    batch_size: int,
    pad_id: int,
    device: torch.device,
    advance: Advance,
) -> torch.Tensor:
    """Return `forward(ids, mask)` of every row as float32 on the CPU, (N, ...), in the order of `rows`.

    Longest rows go first, so that memory runs out at once or not at all.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    results: list[torch.Tensor] = []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids, mask = pad([rows[i] for i in chosen], pad_id)
        results.append(forward(ids.to(device), mask.to(device)).float().cpu())
        advance(len(chosen))
    return torch.cat(results)[torch.tensor(order).argsort()] if results else torch.zeros(0)


def position_limit(model: Any, tokenizer: Any) -> int | None:
    """Return how many tokens the model can take: the smaller of the tokenizer's and the configuration's limit."""
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or 0
    limits = [n for n in (tokenizer.model_max_length, positions - _reserved(model, positions)) if 0 < n < 10**9]
    return min(limits, default=None)


def _reserved(model: Any, positions: int) -> int:
    """Positions that the RoBERTa family keeps for padding: its position table has a padding index."""
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m is not model.get_input_embeddings())
    return max(
        (t.padding_idx + 1 for t in tables if t.padding_idx is not None and t.num_embeddings == positions), default=0
    )
