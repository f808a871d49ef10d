"""Continuing prompts token by token: how every steering is decoded that does not choose among candidates.

It runs on the sequences that searches run on, so that times beside the unsteered model compare methods and not loops,
and rows that have ended leave the batch. Models whose past is more than keys and values by column are continued by
their own `generate`, which knows what else they keep.
"""

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from steerbench.decoding import Decoding
from steerbench.engine.positions import Positions
from steerbench.engine.sampling import drawn, uniforms, warpers
from steerbench.engine.sequences import Sequences, can_repeat
from steerbench.models.language_model import Batch, LanguageModel, Tokens
from steerbench.models.modes import evaluating, generating

SPARSE = 0.75
"""Share of rows that go on at which the others are taken out."""
_tried: "WeakKeyDictionary[PreTrainedModel, dict[torch.dtype, bool]]" = WeakKeyDictionary()


class Continuation:
    """What the own rows of a batch are continued with; behind them there may be twins, which take the same tokens.

    `processors` change the scores of all rows, `generators` has one for each own row where tokens are drawn. `staying`
    keeps rows that have ended, for processors that know the batch as it was. `leaving` is called with the own rows that
    go on as others leave, and with all that do; columns then stay where they are. `endless` forbids end tokens.
    """

    def __init__(
        self,
        lm: LanguageModel,
        decoding: Decoding,
        processors: Sequence[LogitsProcessor],
        generators: Sequence[torch.Generator],
        *,
        staying: bool,
        leaving: Callable[[Sequence[int], Sequence[int]], None] | None = None,
        endless: bool = False,
    ) -> None:
        self._lm, self._most = lm, decoding.max_new_tokens
        self._processors, self._staying, self._endless = processors, staying, endless
        self._leaving = leaving
        self._ours = can_continue(lm)  # tried out before the model is steered
        self._warpers = warpers(decoding)
        drawing = decoding.temperature > 0
        self._numbers = torch.stack([uniforms(g, self._most) for g in generators]) if drawing else None

    def run(self, batch: Batch, own: int, positions: Positions, *, use_cache: bool) -> list[list[int]]:
        """Return the new ids of the first `own` rows, each up to its end token at least.

        The steering is installed, and follows `positions`.
        """
        if not self._ours:
            return self._generated(batch, own, use_cache)
        sequences = Sequences(self._lm.model, batch, positions, cached=use_cache, trim=self._leaving is None)
        return self._looped(sequences, own)

    def _looped(self, sequences: Sequences, own: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in range(own)]
        rows = list(range(own))  # which of the own rows is where
        for step in range(1, self._most + 1):
            tokens = self._next(sequences.ids, sequences.logits, rows, step)
            if any(ended := [self._has_ended(found[i]) for i in rows]):
                tokens = tokens.masked_fill(torch.tensor(ended, device=tokens.device), self._lm.pad_id)
            for i, token in zip(rows, tokens.tolist(), strict=True):
                if not self._has_ended(found[i]):
                    found[i].append(token)
            left = [place for place, i in enumerate(rows) if not self._has_ended(found[i])]
            if not left or step == self._most:
                break
            if not self._staying and len(left) <= SPARSE * len(rows) and sequences.movable:
                with_twins = [i + place for i in range(0, len(sequences.ids), len(rows)) for place in left]
                sequences.keep(with_twins)
                if self._leaving is not None:
                    self._leaving(left, with_twins)
                rows, tokens = [rows[place] for place in left], tokens[left]
            sequences.extend(tokens.repeat(len(sequences.ids) // len(rows)))
        return found

    def _has_ended(self, ids: Sequence[int]) -> bool:
        return bool(ids) and ids[-1] in self._lm.end_ids

    def _next(self, ids: Tensor, scores: Tensor, rows: Sequence[int], step: int) -> Tensor:
        """Return the tokens of one step, counted from 1, (own rows that are left,)."""
        if self._endless:
            scores = scores.index_fill(1, torch.tensor(self._lm.end_ids, device=scores.device), -torch.inf)
        for processor in self._processors:
            scores = processor(ids, scores)
        return self._taken(ids, scores, rows, step)

    def _taken(self, ids: Tensor, scores: Tensor, rows: Sequence[int], step: int) -> Tensor:
        own_ids, own = ids[: len(rows)], scores[: len(rows)]
        for warper in self._warpers:
            own = warper(own_ids, own)
        return own.argmax(-1) if self._numbers is None else drawn(own, self._numbers[rows, step - 1])

    def _generated(self, batch: Batch, own: int, use_cache: bool) -> list[list[int]]:
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
                logits_processor=LogitsProcessorList([*self._processors, _Take(self, own)]),
            )
        new: list[list[int]] = ids[:own, batch.input_ids.shape[1] :].tolist()
        return new


class _Take(LogitsProcessor):
    """Leaves to a greedy search the tokens that a continuation takes."""

    def __init__(self, continuation: Continuation, own: int) -> None:
        self._continuation, self._own = continuation, own
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._step += 1
        tokens = self._continuation._taken(input_ids, scores, list(range(self._own)), self._step)
        tokens = tokens.repeat(len(scores) // self._own)
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


@torch.no_grad()
def _agrees(lm: LanguageModel) -> bool:
    """Compare two short rows, token by token in a padded batch, with each read at once."""
    rows = [Tokens((3, 4, 5, 6, 7, 8)), Tokens((5, 4, 3))]
    given = torch.tensor([[6, 5], [4, 7]], device=lm.device)
    batch = lm.left_padded(rows)
    try:
        with evaluating(lm.model):
            sequences = Sequences(lm.model, batch, Positions(batch, [], cached=True), cached=True, trim=False)
            found = [sequences.logits]
            for column in given.T:
                sequences.extend(column)
                found.append(sequences.logits)
            single = [_read(lm, (*row.prompt, *more)) for row, more in zip(rows, given.tolist(), strict=True)]
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError):
        return False
    wanted = torch.stack([logits[-len(found) :] for logits in single])
    gap = (torch.stack(found, dim=1) - wanted).abs().max()
    return bool(gap <= torch.finfo(lm.dtype).eps ** 0.5 * wanted.abs().max())


def _read(lm: LanguageModel, ids: Sequence[int]) -> Tensor:
    """Return the logits of one text, (tokens, vocabulary)."""
    logits: Tensor = lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits[0].float()
    return logits
