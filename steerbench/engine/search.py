"""Search over blocks: candidates are drawn a block at a time, and some of them go on.

All candidates of all prompts are rows of one batch, on one cache: that of the prompts is computed once and repeated.
Every candidate draws by numbers of its own, so that neither the batch nor the other candidates change what it draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from steerbench.decoding import Decoding
from steerbench.engine.sampling import drawn, uniforms, warpers
from steerbench.engine.sequences import Sequences
from steerbench.models.language_model import LanguageModel
from steerbench.models.response import Response
from steerbench.seeds import generator_for
from steerbench.steering.blocks import Blocks, Candidate
from steerbench.steering.parts import DecodePart

_SPARSE = 0.75
"""Share of rows that go on at which the others are taken out."""

Select = Callable[[Sequence[int], Sequence[Sequence[Candidate]]], Sequence[Sequence[int]]]
"""What `DecodePart.select` does, for the candidates of some of the prompts, which are given by their numbers."""


@dataclass(frozen=True)
class Stream:
    """Of which prompt a candidate is, and what numbers it draws by."""

    prompt: int
    name: tuple[Any, ...]


Processors = Callable[[Sequence[Stream]], Sequence[LogitsProcessor]]
"""Makes the processors of one block, whose rows are given."""


class _Next(NamedTuple):
    """What comes next in a row."""

    logits: Tensor
    """(vocabulary,)."""
    state: Tensor | None
    """(width,)."""


@dataclass(eq=False)
class _Slot:
    """A candidate that is being drawn; `row` is where it is in the batch, or where it comes from."""

    prompt: int
    number: int
    ids: list[int]
    begun: int
    stream: Stream
    numbers: list[float]
    """What its tokens are drawn by, each by one; none where decoding is greedy."""
    row: int
    rank: int | None = None
    """Which of the most likely tokens it begins with; None: one that is drawn."""
    log_prob: float = 0.0
    kept: int | None = None
    """How many of the ids go up to the end of the block, once it has ended: the others are lookahead."""
    open: bool = True
    """Whether more is drawn."""
    finished: bool = False
    before: "_Next | None" = None
    """What comes next where the block begins."""
    behind: "_Next | None" = None
    """What comes next behind the block; where that is finished, what its last token was drawn from."""
    candidate: Candidate | None = None

    @property
    def ending(self) -> bool:
        """Whether it is in its block still, and no longer in the lookahead."""
        return self.open and self.kept is None

    def carried(self) -> "_Slot":
        """Return a finished candidate for the next block, in which nothing is added to it."""
        self.begun = len(self.ids)
        return self


@dataclass(eq=False)
class _Prompt:
    """A prompt whose response is looked for."""

    attempt: int = 0
    block: int = 0
    branches: int = 1
    """How many candidates continue one and the same."""
    draws: list[int] = field(default_factory=list)
    slots: list[_Slot] = field(default_factory=list)
    response: Response | None = None


class Search:
    """One batch of prompts, from the first block to the responses."""

    def __init__(
        self,
        lm: LanguageModel,
        part: DecodePart,
        decoding: Decoding,
        seed: tuple[int, int],
        dialogues: Sequence[Any],
        *,
        compact: bool = False,
        endless: bool = False,
    ) -> None:
        self._lm, self._part, self._decoding, self._dialogues = lm, part, decoding, dialogues
        self._seed, self._sample = seed
        self._blocks, self._ends, self._endless = part.blocks, frozenset(lm.end_ids), endless
        self._warpers = warpers(decoding)
        self._compact = compact and self.whole
        # where a candidate that was dropped, or what was looked at, has used numbers of the next block
        self._fresh = part.redraws or ((self._blocks.ragged or self._blocks.lookahead > 0) and part.candidates > 1)
        self._sentences: dict[int, bool] = {}

    def run(self, sequences: Sequences, processors: Processors, select: Select) -> list[Response]:
        """Return the response to each row of `sequences`, which are the prompts alone."""
        count = self._part.candidates
        prompts = [_Prompt(branches=count) for _ in self._dialogues]
        for i, prompt in enumerate(prompts):
            prompt.slots = [self._slot(i, prompt, k, [], i) for k in range(count)]
            self._rank(prompt.slots, [0] * count)
        batch = [slot for prompt in prompts for slot in prompt.slots]
        self._place(sequences, batch)
        while batch:
            self._draw(sequences, batch, processors)
            live = [i for i, prompt in enumerate(prompts) if prompt.response is None]
            candidates = [[self._candidate(slot, prompts[i]) for slot in prompts[i].slots] for i in live]
            for i, chosen in zip(live, select(live, candidates), strict=True):
                self._go_on(i, prompts[i], list(chosen))
            batch = [s for prompt in prompts if prompt.response is None for s in prompt.slots if not s.finished]
            if batch:
                self._place(sequences, batch)
        return [prompt.response for prompt in prompts if prompt.response is not None]

    def candidates(self, sequences: Sequences, processors: Processors, numbers: Sequence[int]) -> list[Candidate]:
        """Return some of the candidates for the one row of `sequences`, where each is one block."""
        prompt = _Prompt()
        batch = [self._slot(0, prompt, k, [], 0) for k in numbers]
        self._place(sequences, batch)
        self._draw(sequences, batch, processors)
        return [self._candidate(slot, prompt) for slot in batch]

    @property
    def whole(self) -> bool:
        """Whether each candidate is one block, and drawn once."""
        return self._blocks == Blocks() and not self._part.redraws

    def _place(self, sequences: Sequences, batch: Sequence[_Slot], *, moving: bool = True) -> None:
        """Make the rows of the batch, each the copy of another one: up to where its candidate begins, or as it is."""
        rows = [slot.row for slot in batch]
        known = [slot.before for slot in batch if slot.before and moving]
        if known:
            states = [one.state for one in known if one.state is not None]
            stops = [sequences.ends[slot.row] + len(slot.ids) for slot in batch]
            logits = torch.stack([one.logits for one in known])
            sequences.keep(rows, stops, logits, torch.stack(states) if states else None)
        else:
            sequences.keep(rows)
        for row, slot in enumerate(batch):
            slot.row = row
            slot.before = self._next(sequences, row) if moving else slot.before

    @staticmethod
    def _next(sequences: Sequences, row: int) -> _Next:
        return _Next(sequences.logits[row], None if sequences.states is None else sequences.states[row])

    # Streams

    def _slot(self, i: int, prompt: _Prompt, number: int, ids: Sequence[int], row: int) -> _Slot:
        """Return a candidate that continues `ids`, those of a row of the batch."""
        stream = Stream(i, self._name(prompt, number))
        numbers: list[float] = []
        if self._decoding.temperature:
            generator = generator_for(self._seed, *stream.name, self._dialogues[i])
            numbers = uniforms(generator, self._decoding.max_new_tokens + 1).tolist()  # closed rows look at one more
        return _Slot(i, number, list(ids), len(ids), stream, numbers, row)

    def _name(self, prompt: _Prompt, number: int) -> tuple[Any, ...]:
        """Return the name of what a candidate draws by. Where there is no choice, that is what the model draws by."""
        number += prompt.attempt * self._part.candidates
        if self._part.candidates == 1 and not self._part.redraws:
            return ("sample", self._sample)
        return ("candidate", self._sample, number, *(("block", prompt.block) if self._fresh and prompt.block else ()))

    # Drawing

    def _rank(self, slots: Sequence[_Slot], parents: Sequence[int]) -> None:
        """Let candidates that continue the same one begin with its most likely tokens, if blocks do."""
        for k, (slot, parent) in enumerate(zip(slots, parents, strict=True)):
            if self._blocks.top and parents.count(parent) > 1:
                slot.rank = parents[:k].count(parent)

    def _draw(self, sequences: Sequences, batch: list[_Slot], processors: Processors) -> None:
        """Draw one block of every candidate in the batch, one for each row."""
        process = processors([slot.stream for slot in batch])
        while True:
            self._close(sequences, [s for s in batch if s.ending and self._ends_block(s)])
            if not any(slot.open for slot in batch):
                return
            scores = sequences.logits
            for processor in process:
                scores = processor(sequences.ids, scores)
            self._close(sequences, self._before_turns(batch, scores))
            if not any(slot.open for slot in batch):
                return
            tokens = self._tokens(sequences, batch, scores)
            self._append(sequences, batch, tokens)
            going_on = [slot for slot in batch if slot.open]
            if not going_on:
                return
            if self._compact and len(going_on) <= _SPARSE * len(batch):
                tokens = tokens[[slot.row for slot in going_on]]
                batch = going_on
                self._place(sequences, batch, moving=False)
            sequences.extend(tokens)

    def _ends_block(self, slot: _Slot) -> bool:
        length, blocks = len(slot.ids) - slot.begun, self._blocks
        may_end = blocks.sentence and length >= blocks.least
        return length == blocks.tokens or (may_end and self._ends_sentence(slot.ids[-1]))

    def _ends_sentence(self, token: int) -> bool:
        if token not in self._sentences:
            text = self._lm.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            self._sentences[token] = text.rstrip().endswith((".", "!", "?"))
        return self._sentences[token]

    def _before_turns(self, batch: list[_Slot], scores: Tensor) -> list[_Slot]:
        """Return the candidates whose next token is uncertain enough for a new block."""
        if self._blocks.entropy is None:
            return []
        log_p = scores.log_softmax(-1)
        entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(-1)
        uncertain = (entropy >= self._blocks.entropy).tolist()
        return [
            s
            for s, turns in zip(batch, uncertain, strict=True)
            if turns and s.ending and len(s.ids) - s.begun >= self._blocks.least
        ]

    def _close(self, sequences: Sequences, slots: Sequence[_Slot]) -> None:
        """End the block of some candidates where they are; what is looked at behind it goes on."""
        for slot in slots:
            logits, state = self._next(sequences, slot.row)
            slot.behind = _Next(logits.clone(), state)  # or the logits of all rows would stay
            slot.kept, slot.open = len(slot.ids), self._blocks.lookahead > 0

    def _tokens(self, sequences: Sequences, batch: list[_Slot], scores: Tensor) -> Tensor:
        """Return the next token of each row, (rows,)."""
        if self._endless:
            scores = scores.index_fill(1, torch.tensor(self._lm.end_ids, device=scores.device), -torch.inf)
        log_p = scores.log_softmax(-1) if self._blocks.top else None
        for warper in self._warpers:
            scores = warper(sequences.ids, scores)
        numbers = [slot.numbers[len(slot.ids)] for slot in batch if slot.numbers]
        tokens = drawn(scores, torch.tensor(numbers, dtype=torch.float64)) if numbers else scores.argmax(-1)
        if log_p is not None:
            self._take_ranked(batch, tokens, log_p)
        return tokens

    @staticmethod
    def _take_ranked(batch: list[_Slot], tokens: Tensor, log_p: Tensor) -> None:
        """Put the token that each candidate has to begin with among those that were drawn, and note log-probs."""
        for row, slot in enumerate(batch):
            if slot.rank is not None and len(slot.ids) == slot.begun:
                tokens[row] = log_p[row].topk(slot.rank + 1).indices[-1]
        for slot, chosen in zip(batch, log_p.gather(1, tokens[:, None])[:, 0].tolist(), strict=True):
            slot.log_prob += chosen if slot.ending else 0.0

    def _append(self, sequences: Sequences, batch: list[_Slot], tokens: Tensor) -> None:
        """Give each open candidate its token; those that it finishes end with the state it was drawn from."""
        for slot, token in zip(batch, tokens.tolist(), strict=True):
            if not slot.open:
                continue
            slot.ids.append(token)
            last = token in self._ends or len(slot.ids) == self._decoding.max_new_tokens
            if slot.kept is None and last:
                slot.open, slot.finished, slot.behind = False, True, self._next(sequences, slot.row)
                slot.kept = len(slot.ids)
            elif slot.kept is not None:
                slot.open = not last and len(slot.ids) - slot.kept < self._blocks.lookahead

    # Choosing

    def _candidate(self, slot: _Slot, prompt: _Prompt) -> Candidate:
        """Return the candidate as a part sees it. One that was finished before stays as it was."""
        if slot.candidate is None:
            assert slot.behind is not None
            response = self._lm.cut(slot.ids[: slot.kept])
            slot.finished = slot.finished or response.finish == "turn"
            ahead = self._lm.cut(slot.ids) if self._blocks.lookahead else None
            log_prob = slot.log_prob if self._blocks.top else None
            slot.candidate = Candidate(response, slot.finished, slot.behind.state, prompt.attempt, ahead, log_prob)
        return slot.candidate

    def _go_on(self, i: int, prompt: _Prompt, chosen: list[int]) -> None:
        """Let some candidates of a prompt go on, or draw them again; or end with the first, where all are finished."""
        slots = prompt.slots
        if not chosen:
            if not self._part.redraws:
                raise ValueError(f"{type(self._part).__name__} keeps no candidate, and does not say that it redraws.")
            prompt.attempt += 1
            prompt.slots = [s if s.begun == len(s.ids) else self._again(i, prompt, s) for s in slots]
            return
        draws = prompt.attempt * prompt.branches + (chosen[0] + 1 if self._part.redraws else prompt.branches)
        prompt.draws += [draws] if prompt.branches > 1 or self._part.redraws else []
        kept = [slots[c] for c in chosen]
        if all(slot.finished for slot in kept):
            prompt.response = replace(self._candidate(kept[0], prompt).response, draws=tuple(prompt.draws))
            return
        prompt.block, prompt.attempt = prompt.block + 1, 0
        alone = len(set(chosen)) == len(chosen)
        prompt.branches = 1 if alone else len(chosen)
        prompt.slots = [
            slot.carried() if slot.finished else self._after(i, prompt, slot.number if alone else k, slot)
            for k, slot in enumerate(kept)
        ]
        self._rank(prompt.slots, chosen)

    def _again(self, i: int, prompt: _Prompt, slot: _Slot) -> _Slot:
        """Return a candidate that begins where another one began."""
        new = self._slot(i, prompt, slot.number, slot.ids[: slot.begun], slot.row)
        new.before, new.rank = slot.before, slot.rank
        return new

    def _after(self, i: int, prompt: _Prompt, number: int, slot: _Slot) -> _Slot:
        """Return a candidate that continues another one."""
        new = self._slot(i, prompt, number, slot.ids[: slot.kept], slot.row)
        new.before, new.log_prob = slot.behind, slot.log_prob
        return new
