"""Generate with a steering: the one way from dialogues to responses."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from transformers import LogitsProcessor

from steerbench.data.dialogue import Dialogue, dialogues_of
from steerbench.decoding import Decoding
from steerbench.engine.backends.choice import responses_of
from steerbench.engine.backends.generation_engine import GenerationEngine
from steerbench.engine.bias_folding import folded
from steerbench.engine.continuation import Continuation, can_take_turns
from steerbench.engine.decode import check_choice, choosing
from steerbench.engine.finiteness import Watch, origin_of
from steerbench.engine.guidance import Given, Passes, processors_of, rows_at_once
from steerbench.engine.install import steered
from steerbench.engine.kept_prompts import KeptPrompts, known_of
from steerbench.engine.last_pass import LastPass
from steerbench.engine.positions import Positions
from steerbench.engine.prompting import prompt_tokens
from steerbench.engine.sampling import uniforms
from steerbench.engine.search import Processors, Search, Select, Stream
from steerbench.engine.sequences import Sequences, can_repeat
from steerbench.engine.shared_prefix import Beginning
from steerbench.engine.twin_rows import TwinRows
from steerbench.engine.waiting_rows import Turn, WaitingRows, begun_beside
from steerbench.models.batching import halving
from steerbench.models.language_model import Batch, LanguageModel, Tokens
from steerbench.models.modes import evaluating
from steerbench.models.pieces import cache_size, in_one_piece, logits_size
from steerbench.models.response import Response
from steerbench.progress import Progress, silent
from steerbench.seeds import generator_for
from steerbench.steering.blocks import Blocks, Candidate
from steerbench.steering.reweighting import follows
from steerbench.steering.steering import Steering

if TYPE_CHECKING:
    from steerbench.models.reward import Reward

T = TypeVar("T")
Observe = Callable[[int, Tensor], None]
"""Sees the number of a row and the scores that its next token is drawn from, (vocabulary,)."""


def generate(  # noqa: PLR0913 - the settings of one call, each by name
    lm: LanguageModel,
    prompts: str | Dialogue | Sequence[str | Dialogue],
    steering: Steering = Steering(),
    decoding: Decoding = Decoding(),
    *,
    seed: int = 0,
    sample: int = 0,
    reward: "Reward | None" = None,
    batch_size: int = 16,
    use_cache: bool = True,
    engine: GenerationEngine | None = None,
    kept: KeptPrompts | None = None,
    progress: Progress = silent,
) -> list[Response]:
    """Return one response per prompt, in order. A text is one user turn, and a single prompt is a list of one.

    Sampling draws from one generator per dialogue, seeded by `seed`, `sample` and the dialogue, so that neither the
    batch nor the steering changes what is drawn; another `sample` is an independent draw. `batch_size` is how many are
    worked on at once, at most. An `engine` generates in place of transformers. Prompts that were `kept` are not read
    again, where the steering leaves them alone. Raises SteerbenchError if a prompt does not fit the context, an edit
    gives NaN, or the engine cannot carry the steering.
    """
    dialogues = dialogues_of(prompts)
    if engine is not None:
        return responses_of(engine, lm, dialogues, steering, decoding, (seed, sample), reward, batch_size, progress)
    if steering.decode is None:
        draws = Draws(lm, steering, decoding, reward, use_cache, [(seed, "sample", sample)], kept=kept)
        return draws.run(dialogues, batch_size, progress)
    return _chosen(lm, dialogues, steering, decoding, (seed, sample), reward, batch_size, use_cache, progress)


@torch.no_grad()
def _chosen(  # noqa: PLR0913, PLR0917
    lm: LanguageModel,
    dialogues: Sequence[Dialogue],
    steering: Steering,
    decoding: Decoding,
    seed: tuple[int, int],
    reward: "Reward | None",
    batch_size: int,
    use_cache: bool,
    progress: Progress,
) -> list[Response]:
    """Return the response that is chosen for each dialogue."""
    assert steering.decode is not None
    check_choice(steering.decode, decoding, reward)
    tokens = prompt_tokens(lm, steering, dialogues, batch_size, decoding.max_new_tokens)

    def work(rows: list[int]) -> list[Response]:
        chosen = [dialogues[i] for i in rows]
        given = Given(chosen, reward, [generator_for(*seed, "choice", d) for d in chosen])
        batch = lm.left_padded([tokens[i] for i in rows])
        return _search_batch(lm, batch, steering, decoding, seed, given, use_cache)

    responses: dict[int, Response] = {}
    with progress("generate", len(tokens)) as advance:
        for rows, found in halving(
            lm.batches(tokens, _prompts_at_once(steering, lm, tokens, decoding, batch_size)), work
        ):
            responses |= dict(zip(rows, found, strict=True))
            advance(len(rows))
    return [responses[i] for i in range(len(dialogues))]


def generate_samples(  # noqa: PLR0913 - as generate
    lm: LanguageModel,
    prompts: Sequence[Dialogue],
    steering: Steering = Steering(),
    decoding: Decoding = Decoding(),
    *,
    samples: int,
    seed: int = 0,
    reward: "Reward | None" = None,
    batch_size: int = 16,
    engine: GenerationEngine | None = None,
    kept: KeptPrompts | None = None,
    progress: Progress = silent,
) -> list[Response]:
    """Return what `generate` does for each sample from 0 on, one sample after the other: prompts are read for all."""
    if engine is None and steering.decode is None:
        names = [(seed, "sample", sample) for sample in range(samples)]
        draws = Draws(lm, steering, decoding, reward, True, names, kept=kept)
        return draws.run(prompts, batch_size, progress)

    def of(sample: int) -> list[Response]:
        name = (seed, sample)
        if engine is not None:
            return responses_of(engine, lm, prompts, steering, decoding, name, reward, batch_size, progress)
        return _chosen(lm, prompts, steering, decoding, name, reward, batch_size, True, progress)

    return [response for sample in range(samples) for response in of(sample)]


def generate_fixed(
    lm: LanguageModel,
    dialogues: Sequence[Dialogue],
    steering: Steering,
    new_tokens: int,
    reward: "Reward | None" = None,
    engine: GenerationEngine | None = None,
) -> None:
    """Generate exactly `new_tokens` greedy tokens for each dialogue, and throw them away: for timing.

    All dialogues are one batch. End tokens are forbidden. Where the steering chooses among candidates, all of them are
    generated, and with a reward the choice is made, too.
    """
    decoding, rows = Decoding(max_new_tokens=new_tokens), len(dialogues)
    if engine is not None:
        responses_of(engine, lm, dialogues, steering, decoding, (0, 0), reward, rows, silent, endless=True)
        return
    batch = lm.left_padded(prompt_tokens(lm, steering, dialogues, rows, new_tokens))
    with torch.no_grad():
        if steering.decode:
            given = Given(dialogues, reward, [generator_for(0, "choice", d) for d in dialogues])
            _search_batch(lm, batch, steering, decoding, (0, 0), given, True, endless=True)
        else:
            given = Given(dialogues, reward, [generator_for(0, "guide", d) for d in dialogues])
            _generate_batch(lm, batch, steering, decoding, [], True, given, endless=True)


@dataclass
class Draws:
    """Responses without a choice among candidates: one for each name that they are drawn by, and each dialogue."""

    lm: LanguageModel
    steering: Steering
    decoding: Decoding
    reward: "Reward | None"
    use_cache: bool
    names: Sequence[tuple[Any, ...]]
    observe: Observe | None = None
    kept: KeptPrompts | None = None

    @torch.no_grad()
    def run(self, dialogues: Sequence[Dialogue], batch_size: int, progress: Progress = silent) -> list[Response]:
        """Draw all, at most `batch_size` at once, fewer where the memory runs out; those of one name stand together."""
        tokens = prompt_tokens(self.lm, self.steering, dialogues, batch_size, self.decoding.max_new_tokens)
        self._rows = [(name, dialogue) for name in self.names for dialogue in dialogues]
        self._tokens = tokens * len(self.names)
        self._prefix = cache(partial(known_of, self.lm, self.steering, tokens, self.kept))
        responses: dict[int, Response] = {}

        def finished(row: int, ids: list[int]) -> None:
            responses[row] = self.lm.cut(ids)
            advance(1)

        size = rows_at_once(self.steering.logits, self.lm, batch_size)
        size = min(_in_one_piece(self.lm, tokens, self.decoding, size), self.lm.largest_batch or size)
        waiting = WaitingRows(self._tokens, self._numbers_of, finished)
        in_turn = not self.steering.logits and (len(self._rows) > size or waiting.repeats) and can_take_turns(self.lm)
        work = partial(self._in_turn if in_turn else self._by_batch, waiting)
        with progress("generate", len(self._rows)) as advance:
            for _ in halving(waiting.batches(size), work):
                pass
        return [responses[i] for i in range(len(self._rows))]

    def _numbers_of(self, row: int) -> list[float]:
        """Return what the tokens of a row are drawn by."""
        name, dialogue = self._rows[row]
        drawing = self.decoding.temperature > 0
        return uniforms(generator_for(*name, dialogue), self.decoding.max_new_tokens).tolist() if drawing else []

    def _in_turn(self, waiting: WaitingRows, rows: list[int]) -> None:
        """Finish some rows, and others that take their places."""
        if not (chosen := waiting.claimed(rows)):
            return
        prompts, copies = waiting.prompts(chosen)
        batch, turn = self.lm.left_padded(prompts), Turn(waiting, chosen, copies)
        try:
            self._generate(batch, [], turn=turn, observe=self.observe)
        finally:
            waiting.restore()

    def _by_batch(self, waiting: WaitingRows, rows: list[int]) -> None:
        """Finish some rows, for a model or parts that know the batch as it began."""
        chosen = [self._rows[i] for i in rows]
        generators = [generator_for(*name, "guide", dialogue) for name, dialogue in chosen]
        given = Given([dialogue for _, dialogue in chosen], self.reward, generators)
        batch = self.lm.left_padded([self._tokens[i] for i in rows])

        theirs = [generator_for(*name, dialogue) for name, dialogue in chosen]
        observe = self.observe and partial(self._observe_row, rows)
        new = self._generate(batch, theirs, given=given, observe=observe)
        for row, ids in zip(rows, new, strict=True):
            waiting.finish(row, ids)

    def _observe_row(self, rows: Sequence[int], place: int, scores: Tensor) -> None:
        if self.observe is not None:
            self.observe(rows[place], scores)

    def _generate(self, batch: Batch, generators: Sequence[torch.Generator], **more: Any) -> list[list[int]]:
        more["prefix"] = self._prefix() if self.use_cache else None
        return _generate_batch(self.lm, batch, self.steering, self.decoding, generators, self.use_cache, **more)


def _generate_batch(  # noqa: PLR0913, PLR0917
    lm: LanguageModel,
    batch: Batch,
    steering: Steering,
    decoding: Decoding,
    generators: Sequence[torch.Generator],
    use_cache: bool,
    given: Given = Given(),
    endless: bool = False,
    turn: Turn | None = None,
    observe: Observe | None = None,
    prefix: Beginning | None = None,
) -> list[list[int]]:
    """Return the new ids of each row, up to its end token at least. With a `turn`, finish its rows instead.

    Then the batch holds the different prompts of its first rows, and rows that wait take the places of others. All
    prompts begin with the `prefix`, if there is one, which the steering leaves alone.
    """
    twins = TwinRows.of(lm, batch, steering, given)
    batch, whole, more = (twins.own, twins.whole, twins.edits) if twins else (batch, batch, [])
    positions = Positions(whole, lm.end_ids, cached=use_cache)
    watches, last = [Watch(origin_of(steering))], None
    processors: list[LogitsProcessor] = [watches[0]]
    passes = Passes(lm, steering.edits, batch.input_ids.shape[1], positions, steering.prompt)
    if steering.logits:
        watches.append(Watch("a logits processor"))
        last = passes.last = LastPass.wanted(lm, steering.logits)
        processors += [*processors_of(lm, batch, steering, given, passes), watches[1]]
    if twins:
        processors = [twins.processor(processors, passes)]
    continuation = Continuation(
        lm,
        decoding,
        processors,
        generators,
        staying=bool(more) or not all(map(follows, steering.logits)),
        leaving=passes.keep if steering.logits else None,
        endless=endless,
        observe=observe,
        prefix=prefix,
    )
    new: list[list[int]] = []
    with (
        evaluating(lm.model),
        folded(lm.anatomy, steering.edits) as edits,
        steered(lm.model, lm.anatomy, [*edits, *more], positions, changing=turn is not None and bool(turn.waiting)),
        last.followed() if last else nullcontext(),
    ):
        if turn is None:
            new = continuation.run(whole, len(batch.input_ids), positions, use_cache=use_cache)
        else:
            begin = partial(begun_beside, lm, edits, positions, prefix)
            continuation.run_in_turn(batch, turn, begin, positions, use_cache=use_cache)
    for watch in watches:
        watch.check()
    return new


def _in_one_piece(lm: LanguageModel, tokens: Sequence[Tokens], decoding: Decoding, rows: int) -> int:
    """Return how many of `rows` are generated at once: a CPU is slower per row where the cache is in large tensors."""
    usual = median(len(t.prompt) for t in tokens) if tokens else 0
    kept = int(usual + decoding.max_new_tokens) * cache_size(lm.model)
    return in_one_piece(rows, max(kept, logits_size(lm.model)), lm.device)


def _prompts_at_once(
    steering: Steering, lm: LanguageModel, tokens: Sequence[Tokens], decoding: Decoding, batch_size: int
) -> int:
    """Return how many prompts are searched at once: one, where rows that move would mislead a logits processor."""
    part = steering.decode
    assert part is not None
    if (part.redraws or part.blocks.ragged) and steering.logits:
        return 1
    candidates = _in_one_piece(lm, tokens, decoding, batch_size * part.candidates)
    return rows_at_once([*steering.logits, part], lm, max(1, min(batch_size, candidates // part.candidates)))


def _search_batch(  # noqa: PLR0913, PLR0917
    lm: LanguageModel,
    batch: Batch,
    steering: Steering,
    decoding: Decoding,
    seed: tuple[int, int],
    given: Given,
    use_cache: bool,
    endless: bool = False,
) -> list[Response]:
    """Return the response that the steering's decode part finds to each row."""

    def searching(work: Callable[[Search, Sequences, Processors, Select], T]) -> T:
        return _searching(lm, batch, steering, decoding, seed, given, use_cache, endless, work)

    def candidates(numbers: list[int]) -> list[Candidate]:
        return searching(lambda search, sequences, processors, _: search.candidates(sequences, processors, numbers))

    part = steering.decode
    assert part is not None
    if len(batch.prompt_ends) > 1 or part.candidates == 1 or part.blocks != Blocks() or part.redraws:
        return searching(lambda search, sequences, processors, select: search.run(sequences, processors, select))
    drawn = [c for _, some in halving([list(range(part.candidates))], candidates) for c in some]
    passes = Passes(lm, steering.edits, batch.input_ids.shape[1], prompt=steering.prompt)
    ((chosen, *_),) = choosing(part, lm, batch, given, passes)([0], [drawn])
    return [replace(drawn[chosen].response, draws=(part.candidates,))]


def _searching(  # noqa: PLR0913, PLR0917
    lm: LanguageModel,
    batch: Batch,
    steering: Steering,
    decoding: Decoding,
    seed: tuple[int, int],
    given: Given,
    use_cache: bool,
    endless: bool,
    work: Callable[[Search, Sequences, Processors, Select], T],
) -> T:
    """Return `work` of the batch, with the steering's edits installed."""
    part, dialogues = steering.decode, given.dialogues
    assert part is not None
    assert dialogues is not None
    cached = use_cache and can_repeat(lm.model)
    positions = Positions(batch, lm.end_ids, cached=cached)
    passes = Passes(lm, steering.edits, batch.input_ids.shape[1], positions, steering.prompt)
    watches = [Watch(origin_of(steering)), *([Watch("a logits processor")] if steering.logits else [])]

    def processors(streams: Sequence[Stream]) -> list[LogitsProcessor]:
        if not steering.logits:
            return [*watches]
        rows = [stream.prompt for stream in streams]
        copies = Batch(batch.input_ids[rows], batch.attention_mask[rows], [batch.prompt_ends[i] for i in rows])
        generators = [generator_for(seed[0], *s.name, "guide", dialogues[s.prompt]) for s in streams]
        theirs = given.of(rows)._replace(generators=generators)
        return [watches[0], *processors_of(lm, copies, steering, theirs, passes), watches[1]]

    search = Search(lm, part, decoding, seed, dialogues, compact=not steering.logits, endless=endless)
    place = lm.anatomy.place(part.site) if part.site else None
    with (
        evaluating(lm.model),
        folded(lm.anatomy, steering.edits) as edits,
        steered(lm.model, lm.anatomy, edits, positions),
    ):
        sequences = Sequences(lm.model, batch, positions, place, cached=cached, trim=not steering.logits)
        found = work(search, sequences, processors, choosing(part, lm, batch, given, passes))
    for watch in watches:
        watch.check()
    return found
