"""Continuing prompts token by token: how every steering is decoded that does not choose among candidates.

It runs on the sequences that searches run on, so that times beside the unsteered model compare methods and not loops,
and rows that have ended leave the batch. Models whose past is more than keys and values by column are continued by
their own `generate`, which knows what else they keep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from steerbench.decoding import Decoding
from steerbench.engine.positions import Positions
from steerbench.engine.sampling import drawn, uniforms, warpers
from steerbench.engine.sequences import Sequences, can_repeat
from steerbench.engine.shared_prefix import Beginning, SharedPrefix
from steerbench.engine.waiting_rows import Begin, Turn, WaitingRows
from steerbench.models.language_model import Batch, LanguageModel, Tokens
from steerbench.models.modes import evaluating, generating

SPARSE = 0.75
"""Share of rows that go on at which the others are taken out."""
ROOM = 1 / 12
"""Share of rows that have ended at which those that wait take their places."""
_tried: "WeakKeyDictionary[PreTrainedModel, dict[torch.dtype, bool]]" = WeakKeyDictionary()
_turns: "WeakKeyDictionary[PreTrainedModel, dict[torch.dtype, bool]]" = WeakKeyDictionary()
_prefixes: "WeakKeyDictionary[PreTrainedModel, dict[torch.dtype, bool]]" = WeakKeyDictionary()
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError)


@dataclass(eq=False)
class _Row:
    """A response that is being made."""

    number: int
    numbers: list[float]
    """What its tokens are drawn by, each by one; none where decoding is greedy."""
    ids: list[int] = field(default_factory=list)


class Continuation:
    """What the own rows of a batch are continued with; behind them there may be twins, which take the same tokens.

    `processors` change the scores of all rows, `generators` has one for each own row where tokens are drawn. `staying`
    keeps rows that have ended, for processors that know the batch as it was. `leaving` is called with the own rows that
    go on as others leave, and with all that do; columns then stay where they are. `endless` forbids end tokens.
    `observe` sees the number of each row and the scores that its next token is drawn from, (vocabulary,). All prompts
    begin with the `prefix`.
    """

    def __init__(  # noqa: PLR0913 - what goes into one loop
        self,
        lm: LanguageModel,
        decoding: Decoding,
        processors: Sequence[LogitsProcessor],
        generators: Sequence[torch.Generator],
        *,
        staying: bool,
        leaving: Callable[[Sequence[int], Sequence[int]], None] | None = None,
        endless: bool = False,
        observe: Callable[[int, Tensor], None] | None = None,
        prefix: Beginning | None = None,
    ) -> None:
        self._lm, self._most = lm, decoding.max_new_tokens
        self._processors, self._staying, self._endless = processors, staying, endless
        self._leaving, self._observe, self._prefix = leaving, observe, prefix
        self._ours = can_continue(lm)  # tried out before the model is steered
        self._warpers = warpers(decoding)
        drawing = decoding.temperature > 0
        self._numbers = [uniforms(g, self._most).tolist() for g in generators] if drawing else []

    def run(self, batch: Batch, own: int, positions: Positions, *, use_cache: bool) -> list[list[int]]:
        """Return the new ids of the first `own` rows, each up to its end token at least.

        The steering is installed, and follows `positions`.
        """
        rows = [_Row(i, self._numbers[i] if self._numbers else []) for i in range(own)]
        if not self._ours:
            return self._generated(batch, rows, use_cache)
        sequences = self._begun(batch, positions, use_cache, trim=self._leaving is None)
        self._looped(sequences, rows)
        return [row.ids for row in rows]

    def run_in_turn(self, batch: Batch, turn: Turn, begin: Begin, positions: Positions, *, use_cache: bool) -> None:
        """Finish the rows of a turn, and those that wait, as long as they can take the places of others."""
        waiting, numbers, copies = turn
        sequences = self._begun(batch, positions, use_cache, trim=True)
        if len(copies) > len(batch.input_ids):
            if sequences.movable:
                sequences.keep(copies)
            else:  # one for each prompt now
                waiting.changing = False
                chosen = [copies.index(place) for place in range(len(batch.input_ids))]
                waiting.give_back([n for i, n in enumerate(numbers) if i not in chosen])
                numbers = [numbers[i] for i in chosen]
        self._looped(sequences, [_Row(n, waiting.numbers_of(n)) for n in numbers], waiting, begin)

    def _begun(self, batch: Batch, positions: Positions, cached: bool, *, trim: bool) -> Sequences:
        return Sequences(self._lm.model, batch, positions, cached=cached, trim=trim, prefix=self._prefix)

    def _looped(
        self,
        sequences: Sequences,
        rows: list[_Row],
        waiting: WaitingRows | None = None,
        begin: Begin | None = None,
    ) -> None:
        tokens = self._drawn(sequences.ids, sequences.logits, rows, waiting)
        while True:
            left = [place for place, row in enumerate(rows) if not self._has_ended(row)]
            if waiting and begin and len(rows) - len(left) >= max(1, ROOM * len(rows)):
                tokens = self._refilled(sequences, rows, tokens, waiting, begin)
                continue
            if not left:
                return
            if not self._staying and len(left) <= SPARSE * len(rows) and not waiting and sequences.movable:
                tokens = self._without_ended(sequences, len(rows), left, tokens)
                rows = [rows[place] for place in left]
            real = [not self._has_ended(row) for row in rows]
            again = len(sequences.ids) // len(rows)
            going_on = None if all(real) else torch.tensor(real, device=tokens.device).long().repeat(again)
            sequences.extend(tokens.repeat(again), going_on)
            tokens = self._drawn(sequences.ids, sequences.logits, rows, waiting)

    def _without_ended(self, sequences: Sequences, rows: int, left: list[int], tokens: Tensor) -> Tensor:
        """Take rows out that have ended, with their twins; return the tokens of the others."""
        with_twins = [i + place for i in range(0, len(sequences.ids), rows) for place in left]
        sequences.keep(with_twins)
        if self._leaving is not None:
            self._leaving(left, with_twins)
        return tokens[left]

    def _refilled(
        self, sequences: Sequences, rows: list[_Row], tokens: Tensor, waiting: WaitingRows, begin: Begin
    ) -> Tensor:
        """Put rows that wait at the places of those that have ended; return the tokens of all."""
        ended = [place for place, row in enumerate(rows) if self._has_ended(row)]
        for numbers, others, copies in waiting.begun(len(ended), begin):
            if not (waiting.changing and sequences.replaceable(others)):
                waiting.changing = False
                waiting.give_back(numbers)
                continue
            places, ended = ended[: len(numbers)], ended[len(numbers) :]
            new = [_Row(n, waiting.numbers_of(n)) for n in numbers]
            theirs = self._drawn(others.ids[copies], others.logits[copies], new, waiting)
            sequences.replace(places, others, copies)
            for place, row in zip(places, new, strict=True):
                rows[place] = row
            tokens = tokens.index_copy(0, torch.tensor(places, device=tokens.device), theirs)
        return tokens

    def _has_ended(self, row: _Row) -> bool:
        return len(row.ids) == self._most or (bool(row.ids) and row.ids[-1] in self._lm.end_ids)

    def _drawn(self, ids: Tensor, scores: Tensor, rows: Sequence[_Row], waiting: WaitingRows | None) -> Tensor:
        """Return the next token of each own row, (own rows,): a pad of those that have ended, which take none."""
        open_ = [not self._has_ended(row) for row in rows]
        numbers = [row.numbers[min(len(row.ids), self._most - 1)] for row in rows if row.numbers]
        tokens = self._next(ids, scores, rows, numbers)
        if not all(open_):
            tokens = tokens.masked_fill(torch.tensor(open_, device=tokens.device).logical_not(), self._lm.pad_id)
        for row, token, takes in zip(rows, tokens.tolist(), open_, strict=True):
            if takes:
                row.ids.append(token)
                if waiting is not None and self._has_ended(row):
                    waiting.finish(row.number, row.ids)
        return tokens

    def _next(self, ids: Tensor, scores: Tensor, rows: Sequence[_Row], numbers: Sequence[float]) -> Tensor:
        if self._endless:
            scores = scores.index_fill(1, torch.tensor(self._lm.end_ids, device=scores.device), -torch.inf)
        for processor in self._processors:
            scores = processor(ids, scores)
        if self._observe is not None:
            for row, of_row in zip(rows, scores, strict=False):
                if not self._has_ended(row):
                    self._observe(row.number, of_row)
        return self._taken(ids[: len(rows)], scores[: len(rows)], numbers)

    def _taken(self, ids: Tensor, scores: Tensor, numbers: Sequence[float]) -> Tensor:
        for warper in self._warpers:
            scores = warper(ids, scores)
        return drawn(scores, torch.tensor(numbers, dtype=torch.float64)) if numbers else scores.argmax(-1)

    def _generated(self, batch: Batch, rows: Sequence[_Row], use_cache: bool) -> list[list[int]]:
        """Have the model's own `generate` run the passes."""
        least = self._most if self._endless else 0
        with generating(self._lm.model, self._lm.generation_config):
            ids = self._lm.model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=self._most,
                min_new_tokens=least,
                do_sample=False,
                use_cache=use_cache,
                logits_processor=LogitsProcessorList([*self._processors, _Take(self, rows)]),
            )
        new: list[list[int]] = ids[: len(rows), batch.input_ids.shape[1] :].tolist()
        return new


class _Take(LogitsProcessor):
    """Leaves to a greedy search the tokens that a continuation takes."""

    def __init__(self, continuation: Continuation, rows: Sequence[_Row]) -> None:
        self._continuation, self._rows = continuation, rows
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        own, numbers = len(self._rows), [row.numbers[self._step] for row in self._rows if row.numbers]
        self._step += 1
        tokens = self._continuation._taken(input_ids[:own], scores[:own], numbers)
        tokens = tokens.repeat(len(scores) // own)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)


def can_continue(lm: LanguageModel) -> bool:
    """Tell whether sequences of ours give what the model's own `generate` gives.

    They pass what `generate` passes unless the model has a way of its own to prepare its inputs: then it is tried out,
    once for each data type.
    """
    if not can_repeat(lm.model):
        return False
    if type(lm.model).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation:
        return True
    known = _tried.setdefault(lm.model, {})
    if lm.dtype not in known:
        known[lm.dtype] = _agrees(lm)
    return known[lm.dtype]


def can_take_turns(lm: LanguageModel) -> bool:
    """Tell whether rows can take the places of others in the middle of a batch. Tried out once for each data type."""
    if lm.largest_batch is not None or not can_continue(lm):
        return False
    known = _turns.setdefault(lm.model, {})
    if lm.dtype not in known:
        known[lm.dtype] = _takes_turns(lm)
    return known[lm.dtype]


def can_share(lm: LanguageModel) -> bool:
    """Tell whether rows can go on behind a beginning that was read once for all. Tried out once for each data type.

    Not where others, such as `steered`, watch the model's passes: they would take the beginning for a prompt.
    """
    if lm.largest_batch is not None or lm.model._forward_pre_hooks or not can_continue(lm):
        return False
    known = _prefixes.setdefault(lm.model, {})
    if lm.dtype not in known:
        known[lm.dtype] = _agrees(lm, ((3, 4, 5, 6, 7, 8), (3, 4, 5, 4)), shared=3)
    return known[lm.dtype]


@torch.no_grad()
def _agrees(
    lm: LanguageModel, rows: Sequence[tuple[int, ...]] = ((3, 4, 5, 6, 7, 8), (5, 4, 3)), shared: int = 0
) -> bool:
    """Compare two short rows, token by token in a padded batch, with each read at once.

    Of the batch, the first tokens are read once for both rows if they are `shared`.
    """
    given = torch.tensor([[6, 5], [4, 7]], device=lm.device)
    try:
        with evaluating(lm.model):
            sequences = _begun(lm, *rows, prefix=SharedPrefix(lm, rows[0][:shared]) if shared else None)
            found = [sequences.logits]
            for column in given.T:
                sequences.extend(column)
                found.append(sequences.logits)
            single = [_read(lm, (*row, *more)) for row, more in zip(rows, given.tolist(), strict=True)]
    except _FAILURES:
        return False
    return _alike(torch.stack(found, dim=1), torch.stack([logits[-len(found) :] for logits in single]), lm.dtype)


@torch.no_grad()
def _takes_turns(lm: LanguageModel) -> bool:
    """Compare rows whose neighbours make room for a shorter one, then for a longer one, with each read at once."""
    first, second, shorter, longer = (3, 4, 5, 6, 7, 8), (5, 4, 3), (4, 7, 3, 5), (6, 3, 5, 4, 7, 8, 3, 5, 4, 6)
    try:
        with evaluating(lm.model):
            sequences = _begun(lm, first, second)
            sequences.extend(torch.tensor([6, 5], device=lm.device))
            sequences.replace([1], _begun(lm, shorter), [0])
            sequences.extend(torch.tensor([4, 6], device=lm.device))
            found = [*sequences.logits]
            sequences.replace([0], _begun(lm, longer), [0])
            sequences.extend(torch.tensor([7, 5], device=lm.device))
            found += sequences.logits
            texts = ((*first, 6, 4), (*shorter, 6), (*longer, 7), (*shorter, 6, 5))
            wanted = [_read(lm, text)[-1] for text in texts]
    except _FAILURES:
        return False
    return _alike(torch.stack(found), torch.stack(wanted), lm.dtype)


def _begun(lm: LanguageModel, *prompts: tuple[int, ...], prefix: Beginning | None = None) -> Sequences:
    batch = lm.left_padded([Tokens(prompt) for prompt in prompts])
    return Sequences(lm.model, batch, Positions(batch, [], cached=True), cached=True, trim=True, prefix=prefix)


def _alike(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    return bool((found - wanted).abs().max() <= torch.finfo(dtype).eps ** 0.5 * wanted.abs().max())


def _read(lm: LanguageModel, ids: Sequence[int]) -> Tensor:
    """Return the logits of one text, (tokens, vocabulary)."""
    logits: Tensor = lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits[0].float()
    return logits
