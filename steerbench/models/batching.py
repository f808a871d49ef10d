"""Texts through a frozen model: token ids, padded batches of similar length, results in the original order."""

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import nn

from steerbench.errors import SteerbenchError
from steerbench.models.pieces import by_length
from steerbench.progress import Advance

T = TypeVar("T")
Side = Literal["left", "right"]
Seen = Callable[[Any, torch.Tensor, torch.Tensor], None]
"""Sees what was read or changed where: a name, and the activations before and after, (rows, columns, width) each."""

_NO_ROOM = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What messages say of CUDA and MPS, of a CPU, of matrix products."""


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


def check_ids(rows: Iterable[Sequence[int]], tokenizer: Any, model: Any, name: str) -> None:
    """Raise SteerbenchError if an id has no row in the model's embedding, as that of Gemma 3's image token."""
    known = n_embeddings(model)
    lost = next((i for row in rows for i in row if i >= known), None)
    if lost is not None:
        raise SteerbenchError(
            f"a text holds {tokenizer.convert_ids_to_tokens(lost)!r}, token {lost}, and model {name!r} has "
            f"{known} embeddings; take it out of the text."
        )


def n_embeddings(model: Any) -> int:
    """Return the rows of a model's embedding: one more than the largest id that it can read."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except NotImplementedError:  # CANINE hashes its characters
        return 2**31


def padding_id(tokenizer: Any, model: Any) -> int:
    """Return an id that the model can read to fill batches with. The mask says what is real, so any other will do."""
    pad = tokenizer.pad_token_id
    return int(pad) if pad is not None and pad < n_embeddings(model) else 0


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: Side = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Return padded ids and the attention mask, both (batch, longest row). A row without tokens is one pad."""
    rows = [row or [pad_id] for row in rows]
    width = max(map(len, rows))
    lefts = [width - len(row) if side == "left" else 0 for row in rows]
    ids = [
        [pad_id] * left + [*row] + [pad_id] * (width - left - len(row)) for left, row in zip(lefts, rows, strict=True)
    ]
    mask = [
        [0] * left + [1] * len(row) + [0] * (width - left - len(row)) for left, row in zip(lefts, rows, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


def halving(batches: Iterable[list[int]], work: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """Yield each batch of rows with `work(rows)`, in parts where the memory runs out.

    A batch that does not fit is halved and begun again, and none after it is larger; a warning says so once. So `work`
    must leave nothing behind when it fails. Raises torch.OutOfMemoryError where a single row does not fit.
    """
    limit, too_many = None, 0
    for batch in batches:
        left = batch
        while left:
            rows = left[:limit]
            try:
                found = work(rows)
            except (RuntimeError, MemoryError) as error:
                limit, too_many = _half(len(rows), error), too_many or len(rows)
            else:
                if too_many:
                    _tell(too_many, len(rows))
                yield rows, found
                del found  # makes room for the next one
                left, too_many = left[len(rows) :], 0
                continue
            _free()  # not earlier: the error holds the frames of what failed, and they its tensors


def _half(n_rows: int, error: RuntimeError | MemoryError) -> int:
    """Return half of a batch that did not fit. Raises the error again if it is another one, or if one row is left."""
    if not is_out_of_memory(error):
        raise error
    if n_rows == 1:
        raise error if isinstance(error, torch.OutOfMemoryError) else torch.OutOfMemoryError(str(error)) from error
    return n_rows // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a lack of memory, of the GPU or the machine, from other errors: torch has no class of its own for all."""
    told = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_ROOM)
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _tell(too_many: int, n_rows: int) -> None:
    warnings.warn(
        f"the memory does not hold {too_many} sequences at once; going on with {n_rows}. "
        f"Lower --batch-size to begin with fewer.",
        stacklevel=2,
    )


@torch.inference_mode()
def in_batches(  # noqa: PLR0913 - the settings of one walk, each by name
    rows: Sequence[Sequence[int]],
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    batch_size: int,
    pad_id: int,
    device: torch.device,
    advance: Advance,
    marks: Sequence[Sequence[int]] | None = None,
    size: int = 0,
) -> torch.Tensor:
    """Return `forward(ids, mask)` of every row as float32 on the CPU, (N, ...), in the order of `rows`.

    Longest rows go first, so that memory runs out at once or not at all; if it does, batches are halved. `marks` are
    numbers above 0, one for each token, which then stand in the mask. `size` is that of the largest tensor of a pass,
    in bytes per token.
    """

    def work(chosen: list[int]) -> torch.Tensor:
        ids, mask = pad([rows[i] for i in chosen], pad_id)
        if marks is not None:
            mask = pad([marks[i] for i in chosen], 0)[0]
        return forward(ids.to(device), mask.to(device)).float().cpu()

    results: list[torch.Tensor] = []
    order: list[int] = []
    for chosen, found in halving(by_length(list(map(len, rows)), batch_size, size, device), work):
        results.append(found)
        order += chosen
        advance(len(chosen))
    return torch.cat(results)[torch.tensor(order).argsort()] if results else torch.zeros(0)


def position_limit(model: Any, tokenizer: Any) -> int | None:
    """Return how many tokens the model can take: the smaller of the tokenizer's and the configuration's limit."""
    positions = n_positions(model)
    limits = [n for n in (tokenizer.model_max_length, positions - _reserved(model, positions)) if 0 < n < 10**9]
    return min(limits, default=None)


def n_positions(model: Any) -> int:
    """Return how many positions the text part of a model has, 0 where its configuration sets no limit."""
    config = model.config.get_text_config(decoder=True)
    names = ("max_position_embeddings", "max_seq_len")  # the second is MPT's
    declared = (getattr(config, name, None) for name in names)
    return next((int(n) for n in declared if n), 0)


def _reserved(model: Any, positions: int) -> int:
    """Positions that the RoBERTa family keeps for padding: its position table has a padding index."""
    try:
        words = model.get_input_embeddings()
    except NotImplementedError:  # CANINE hashes its characters
        words = None
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words)
    return max(
        (t.padding_idx + 1 for t in tables if t.padding_idx is not None and t.num_embeddings == positions), default=0
    )
