"""Whether a model keeps what every score assumes of it, tried out on a few short rows when it is loaded.

A row alone and in a padded batch, drawn token by token with the cache and read at once, must come to the same up to
rounding. What rounding does was measured on right models, as the difference over the length of what is compared: at
most 5e-5 in float32, 4e-2 in float16 and 1e-1 in bfloat16 with 80 layers of wild random weights, a tenth of that or
less in trained ones. Models that read their padding or lose their positions are off by 2e-1 to 1.4, but RoFormer by
6e-2, which float32 alone tells. In half precision, rounding can send a token to another expert of a mixture, which
moves its logits by 1e-1 and seldom those of the next: there the median over the tokens of a row counts. Where int8
weights meet activations that are rounded as well (bitsandbytes), a token's outliers decide how its neighbours are
rounded: by up to 4e-2 in float32, with ten sets of wild random weights.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from steerbench.errors import SteerbenchError
from steerbench.models.batching import is_out_of_memory, n_embeddings, pad, tokenize
from steerbench.models.checkpoint import brief
from steerbench.models.modes import evaluating, generating

RESPONSE = 3
"""Ids at the end of a row that are drawn one by one."""
TOLERANCE = {torch.float16: 5e-2, torch.bfloat16: 1.5e-1}
"""Largest difference taken for rounding, by data type. In others it is 1e-3, and 1e-4 for scores and vectors."""
EIGHT_BITS = 1e-1
"""The same where weights are int8, in any data type that has less."""

_TO_AN_ENCODER = ("encoder_attn", "crossattention")

Row = Sequence[int]
Forward = Callable[[Tensor, Tensor], Tensor]
"""Ids and mask, (rows, columns), to a score or a vector for each row."""


def check_in_memory(model: PreTrainedModel, name: str) -> None:
    """Raise SteerbenchError if weights are elsewhere: there is nothing to hash, to move, or to fold a bias into."""
    missing = next((key for key, weight in model.named_parameters() if weight.is_meta), None)
    if missing:
        raise SteerbenchError(
            f"{name} has weights that are not in memory, such as {missing}; load it without offloading, on a larger "
            f"device or in a smaller data type."
        )


def check_decoder_only(model: PreTrainedModel, name: str) -> None:
    """Refuse the decoder of an encoder-decoder, such as BART's or Whisper's, which loads as a language model, too."""
    found = next((part for part, _ in model.named_modules() if part.rpartition(".")[2] in _TO_AN_ENCODER), None)
    if found:
        raise SteerbenchError(
            f"{name} is the decoder of an encoder-decoder: {found} attends to an encoder; use a decoder-only model."
        )


def check_unhashed(model: PreTrainedModel, name: str) -> None:
    """Refuse Reformer, whose text may not be cut or continued: what it sees is hashed, sorted and cut into chunks.

    A few ids are one chunk, so that no short row tells: of tiny ones with an LSH block, the logits of rows of 20 to 60
    ids were off by up to 5e-1 where they were drawn, with and without the cache.
    """
    if getattr(model.config, "lsh_attn_chunk_length", None):
        raise SteerbenchError(
            f"{name} is a Reformer: it pads a text to whole chunks of its own, and what its tokens see can depend on "
            f"what follows them, so that no response could be scored as it was drawn; use another model."
        )


@torch.no_grad()
def check_causal(model: PreTrainedModel, name: str) -> None:
    """Refuse models whose tokens see what follows them, such as BERT, which load as language models, too."""
    size = n_embeddings(model)
    rows = [[i % size for i in row] for row in ([1, 2, 3, 4], [1, 2, 5, 6])]
    with evaluating(model):
        first = _alone(name, lambda row: _read(model, [row], 0)[:, 0], rows)
    if not bool(first.isfinite().all()):
        raise SteerbenchError(
            f"{name} gives logits that are not finite; its weights are damaged, or too large for their type. "
            f"Use another data type or model."
        )
    if _has_eight_bits(model):
        alike = bool((_gap(first[:1], first[1:]) < EIGHT_BITS).all())
    else:
        alike = torch.allclose(first[0], first[1], atol=1e-2, rtol=1e-2)
    if not alike:
        raise SteerbenchError(f"{name} is no causal language model: its tokens see what follows them.")


@torch.no_grad()
def language_model_batch(model: PreTrainedModel, name: str, rows: Sequence[Row], pad_id: int) -> int | None:
    """Return the largest batch in which each row has the logits that it has alone: 1, or None for any.

    Raises SteerbenchError if a row alone has other logits where it is generated than where it is read at once.
    """
    with evaluating(model):
        scored = _alone(name, lambda row: _scored(model, [row], pad_id), rows)
        drawn = _alone(name, lambda row: _drawn(model, [row], pad_id, use_cache=True), rows)
        if not bool(scored.isfinite().all()):  # told where it is met, with the edit that did it
            return None
        if not _agree(drawn, scored, model):
            raise SteerbenchError(_disagreement(model, name, scored, rows, pad_id))
        together = _tried(lambda: (_scored(model, rows, pad_id), _drawn(model, rows, pad_id, use_cache=True)))
    alike = together is not None and all(_agree(found, scored, model) for found in together)
    return None if alike else _one_by_one(name, "logits")


def trial_rows(tokenizer: Any, limit: int | None, model: Any) -> list[list[int]]:
    """Return a long text, one with special tokens in it, which some models count, and short ones of four lengths.

    Funnel pools neighbours: of these lengths only those that its strides do not divide read the padding. Tokens
    without an embedding are left out: a text that holds one is refused when it comes.
    """
    special = " ".join(filter(None, (tokenizer.eos_token, tokenizer.sep_token)))
    short = ["Why? No" + " no" * more for more in range(4)]
    texts = ["How do I bake a loaf of bread that keeps for a week?", f"Because {special} it does.", *short]
    rows = tokenize(tokenizer, texts, limit=limit, cut="left").rows
    return [[i for i in row if i < n_embeddings(model)] for row in rows]


@torch.no_grad()
def scorer_batch(
    name: str, forward: Forward, rows: Sequence[Row], pad_id: int, device: torch.device, dtype: torch.dtype
) -> int | None:
    """Return the largest batch in which each row has the score, or the vector, that it has alone: 1, or None for any.

    Raises SteerbenchError if a row alone cannot be scored.
    """

    def result(batch: Sequence[Row]) -> Tensor:
        ids, mask = pad(batch, pad_id)
        return forward(ids.to(device), mask.to(device)).float()

    alone = _alone(name, lambda row: result([row]), rows)
    together = _tried(lambda: result(rows))
    finite = bool(alone.isfinite().all())  # what is not is told where it is met
    if together is not None and (not finite or _gap(together, alone).max() < TOLERANCE.get(dtype, 1e-4)):
        return None
    return _one_by_one(name, "scores" if alone.ndim == 1 else "vectors")


def _alone(name: str, run: Callable[[Row], Tensor], rows: Sequence[Row]) -> Tensor:
    """Run each row by itself. Raises SteerbenchError where the model's own code fails."""
    try:
        return torch.cat([run(row) for row in rows])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise SteerbenchError(
            f"{name} fails on a short text: {brief(error).rstrip('.')}. Use another model."
        ) from error


def _tried(run: Callable[[], Any]) -> Any:
    """Run a padded batch; None where the model's own code fails: some refuse batches, or unequal rows."""
    try:
        return run()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None


def _scored(model: PreTrainedModel, rows: Sequence[Row], pad_id: int) -> Tensor:
    """Return the logits that the response of each row is scored with, read at once, (rows, RESPONSE, vocabulary)."""
    logits = _read(model, rows, pad_id)
    ends = [len(row) - 1 for row in rows]
    return torch.stack([of_row[end - RESPONSE : end].float() for end, of_row in zip(ends, logits, strict=True)])


def _read(model: PreTrainedModel, rows: Sequence[Row], pad_id: int) -> Tensor:
    """Return the logits of a right-padded pass, (rows, columns, vocabulary)."""
    ids, mask = (t.to(model.device) for t in pad(rows, pad_id))
    read: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return read


def _drawn(model: PreTrainedModel, rows: Sequence[Row], pad_id: int, *, use_cache: bool) -> Tensor:
    """Return the logits that the response of each row is drawn from, step by step, (rows, RESPONSE, vocabulary)."""
    ids, mask = (t.to(model.device) for t in pad([row[:-RESPONSE] for row in rows], pad_id, "left"))
    given = _Given(torch.tensor([list(row[-RESPONSE:]) for row in rows], device=ids.device))
    with generating(model, GenerationConfig(pad_token_id=pad_id)):
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=RESPONSE,
            do_sample=False,
            use_cache=use_cache,
            logits_processor=LogitsProcessorList([given]),
        )
    return torch.stack(given.logits, dim=1)


class _Given(LogitsProcessor):
    """Keeps the logits of each step, and goes on with a token of the given response, (rows, steps)."""

    def __init__(self, response: Tensor) -> None:
        self.logits: list[Tensor] = []
        self._response = response

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = len(self.logits)
        self.logits.append(scores.float())
        return torch.full_like(scores, -torch.inf).scatter(1, self._response[:, step : step + 1], 0.0)


def _has_eight_bits(model: PreTrainedModel) -> bool:
    return any(weight.dtype == torch.int8 for weight in model.parameters())


def _agree(logits: Tensor, others: Tensor, model: PreTrainedModel) -> bool:
    """Tell whether the logits of all rows are the same up to rounding."""
    dtype = model.dtype
    most = max(TOLERANCE.get(dtype, 1e-3), EIGHT_BITS if _has_eight_bits(model) else 0.0)
    gaps = _gap(*(one - one.mean(-1, keepdim=True) for one in (logits, others)))  # (rows, RESPONSE)
    of_row = gaps.median(1).values if dtype in TOLERANCE else gaps.amax(1)
    return bool((of_row < most).all())


def _gap(found: Tensor, expected: Tensor) -> Tensor:
    """Return the difference of vectors, relative to the length of those expected."""
    gap: Tensor = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-6)
    return gap


def _disagreement(model: PreTrainedModel, name: str, scored: Tensor, rows: Sequence[Row], pad_id: int) -> str:
    """Say why a row is generated from other logits than it is scored with: by the cache, or by its positions."""
    plain = _tried(lambda: torch.cat([_drawn(model, [row], pad_id, use_cache=False) for row in rows]))
    why = " because of its key-value cache" if plain is not None and _agree(plain, scored, model) else ""
    return (
        f"{name} has other logits where it generates a response than where it reads the same one{why}, so that none "
        f"could be scored as it was drawn; use another model."
    )


def _one_by_one(name: str, what: str) -> int:
    warnings.warn(
        f"{name} gives other {what} in a padded batch than alone; it takes one sequence at a time, "
        f"whatever --batch-size says.",
        stacklevel=4,
    )
    return 1
