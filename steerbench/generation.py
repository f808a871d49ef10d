"""Generate with a steering, read activations, and score given responses: the three uses of a language model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from steerbench.batching import halving
from steerbench.dialogue import Dialogue
from steerbench.drawing import sampling
from steerbench.errors import SteerbenchError, suggest
from steerbench.folding import folded
from steerbench.hooks import Observer, Positions, steered
from steerbench.lm import Batch, LanguageModel, Tokens, by_length
from steerbench.progress import Progress, silent
from steerbench.protocol import Decoding
from steerbench.response import Response
from steerbench.seeds import generator_for
from steerbench.sites import Place, Site
from steerbench.steering import Steering
from steerbench.watching import read

if TYPE_CHECKING:
    from steerbench.reward import Reward

T = TypeVar("T")
Pool = Literal["last_prompt", "last_response", "response_mean", "all"]


@torch.no_grad()
def generate(  # noqa: PLR0913 - the settings of one call, each by name
    lm: LanguageModel,
    dialogues: Sequence[Dialogue],
    steering: Steering = Steering(),
    decoding: Decoding = Decoding(),
    *,
    seed: int = 0,
    sample: int = 0,
    reward: "Reward | None" = None,
    batch_size: int = 16,
    use_cache: bool = True,
    progress: Progress = silent,
) -> list[Response]:
    """Return one response per dialogue, in order.

    Sampling draws from one generator per dialogue, seeded by `seed`, `sample` and the dialogue, so that neither the
    batch nor the steering changes what is drawn; another `sample` is an independent draw. Raises SteerbenchError if a
    prompt does not fit the context or an edit gives NaN.
    """
    if steering.decode is None:
        return _draw(lm, dialogues, steering, decoding, (seed, "sample", sample), batch_size, use_cache, progress)
    if reward is None:
        raise SteerbenchError("this steering chooses among candidates and needs a reward model; give one.")
    count = steering.decode.candidates
    if decoding.temperature == 0 and count > 1:
        raise SteerbenchError("greedy candidates are all alike; to choose among them, set --temperature above 0.")
    # draws of their own: one that is also the unsteered response could never lose against it
    names = [("sample", sample)] if count == 1 else [("candidate", sample, k) for k in range(count)]
    draws = [_draw(lm, dialogues, steering, decoding, (seed, *n), batch_size, use_cache, progress) for n in names]
    return [_choose(steering, d, list(c), reward) for d, c in zip(dialogues, zip(*draws, strict=True), strict=True)]


def generate_fixed(
    lm: LanguageModel,
    dialogues: Sequence[Dialogue],
    steering: Steering,
    new_tokens: int,
    reward: "Reward | None" = None,
) -> None:
    """Generate exactly `new_tokens` greedy tokens for each dialogue, and throw them away: for timing.

    All dialogues are one batch. End tokens are forbidden. Where the steering chooses among candidates, all of them are
    generated, one batch for each, and with a reward the choice is made, too.
    """
    tokens = [lm.tokens(steering.apply_prompt(d)) for d in dialogues]
    _check_fit(lm, tokens, new_tokens)
    batch = lm.left_padded(tokens)
    decoding = Decoding(max_new_tokens=new_tokens)
    count = steering.decode.candidates if steering.decode else 1
    with torch.no_grad():
        draws = [_generate_batch(lm, batch, steering, decoding, [], True, new_tokens) for _ in range(count)]
    if steering.decode and reward:
        for dialogue, rows in zip(dialogues, zip(*draws, strict=True), strict=True):
            _choose(steering, dialogue, [lm.cut(row) for row in rows], reward)


def _choose(steering: Steering, dialogue: Dialogue, candidates: list[Response], reward: "Reward") -> Response:
    assert steering.decode is not None
    return candidates[steering.decode.choose(dialogue, [c.text for c in candidates], reward)]


def _draw(  # noqa: PLR0913, PLR0917
    lm: LanguageModel,
    dialogues: Sequence[Dialogue],
    steering: Steering,
    decoding: Decoding,
    seed: tuple[Any, ...],
    batch_size: int,
    use_cache: bool,
    progress: Progress,
) -> list[Response]:
    tokens = [lm.tokens(steering.apply_prompt(d)) for d in dialogues]
    _check_fit(lm, tokens, decoding.max_new_tokens)

    def work(rows: list[int]) -> list[list[int]]:
        batch = lm.left_padded([tokens[i] for i in rows])
        generators = [generator_for(*seed, dialogues[i]) for i in rows]
        return _generate_batch(lm, batch, steering, decoding, generators, use_cache)

    responses: dict[int, Response] = {}
    with progress("generate", len(tokens)) as advance:
        for rows, new in halving(by_length(tokens, batch_size), work):
            responses |= {i: lm.cut(ids) for i, ids in zip(rows, new, strict=True)}
            advance(len(rows))
    return [responses[i] for i in range(len(dialogues))]


def _check_fit(lm: LanguageModel, tokens: Sequence[Tokens], new: int) -> None:
    longest = max((len(t.prompt) + len(t.response) for t in tokens), default=0)
    if longest + new > lm.context_length:
        raise SteerbenchError(
            f"a text of {longest} tokens and {new} new ones do not fit the context of {lm.context_length}; "
            f"shorten the prompt, or lower --max-new-tokens or --max-prompt-tokens."
        )


def _generate_batch(
    lm: LanguageModel,
    batch: Batch,
    steering: Steering,
    decoding: Decoding,
    generators: Sequence[torch.Generator],
    use_cache: bool,
    min_new_tokens: int = 0,
) -> list[list[int]]:
    """Return the new ids of each row; what follows an end token is still there."""
    watches = _Watch(_state_source(steering)), _Watch("a logits processor")
    parts = [part.processor(lm, batch.input_ids, batch.attention_mask) for part in steering.logits]
    watched_parts = [watches[0], *parts, watches[1]] if parts else [watches[0]]
    processors = LogitsProcessorList([*watched_parts, *sampling(decoding, generators)])
    positions = Positions(batch, lm.end_ids, cached=use_cache)
    with folded(lm.anatomy, steering.edits) as edits, steered(lm.model, lm.anatomy, edits, positions):
        ids = lm.model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=min_new_tokens,
            do_sample=False,
            use_cache=use_cache,
            logits_processor=processors,
        )
    for watch in watches:
        watch.check()
    return [row[batch.input_ids.shape[1] :] for row in ids.tolist()]


class _Watch(LogitsProcessor):
    """Notices NaN without waiting for the device. A single token may be forbidden with -inf, all of them may not."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._bad: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bad = ~torch.isfinite(scores.amax(-1)).all()  # NaN beats every number
        self._bad = bad if self._bad is None else self._bad | bad
        return scores

    def check(self) -> None:
        """Raise SteerbenchError if any logit was NaN or infinite."""
        if self._bad is not None and bool(self._bad):
            raise _not_finite(self._source)


def _check_finite(logits: Tensor, source: str) -> None:
    if not bool(torch.isfinite(logits.amax(-1)).all()):
        raise _not_finite(source)


def _state_source(steering: Steering) -> str:
    """Say what makes the states that the logits come from."""
    edits = [f"{type(p.edit).__name__} at {p.site}" for p in steering.edits]
    return f"the edit {', '.join(edits)}" if edits else "the language model itself"


def _not_finite(source: str) -> SteerbenchError:
    return SteerbenchError(f"{source} gave NaN or infinite logits; lower its strength, or use a wider --dtype.")


def activations(
    lm: LanguageModel,
    site: Site,
    tokens: Sequence[Tokens],
    pool: Pool,
    *,
    batch_size: int = 16,
    progress: Progress = silent,
) -> list[Tensor]:
    """Return one float32 CPU tensor per sequence: (width,) when pooled, (tokens, width) for `all`.

    `all` covers prompt and response, `response_mean` the response alone. Raises SteerbenchError where a pool needs a
    response and there is none.
    """
    return activations_at(lm, [site], tokens, pool, batch_size=batch_size, progress=progress)[site]


@torch.no_grad()
def activations_at(
    lm: LanguageModel,
    sites: Sequence[Site],
    tokens: Sequence[Tokens],
    pool: Pool,
    *,
    batch_size: int = 16,
    progress: Progress = silent,
) -> dict[Site, list[Tensor]]:
    """Return what `activations` does for each of several sites, from one pass of the model."""
    if pool not in get_args(Pool):
        raise SteerbenchError(suggest("pool", pool, list(get_args(Pool))))
    if pool in ("last_response", "response_mean") and (empty := [i for i, t in enumerate(tokens) if not t.response]):
        raise SteerbenchError(f"pool {pool!r} needs responses; sequence {empty[0]} has none.")
    _check_fit(lm, tokens, 0)
    places = {site: lm.anatomy.place(site) for site in sites}

    def work(rows: list[int]) -> dict[Place, list[Tensor]]:
        def keep(states: Tensor) -> list[Tensor]:
            pooled = (_pooled(row, tokens[i], pool) for i, row in zip(rows, states, strict=True))
            return [row.to("cpu", torch.float32, copy=True) for row in pooled]  # frees the batch

        return read(lm.model, list(places.values()), lm.right_padded([tokens[i] for i in rows]), keep)

    out: dict[Site, dict[int, Tensor]] = {site: {} for site in sites}
    with progress(f"activations {', '.join(map(str, sites))}", len(tokens)) as advance:
        for rows, found in halving(by_length(tokens, batch_size), work):
            for site, place in places.items():
                out[site] |= zip(rows, found[place], strict=True)
            advance(len(rows))
    return {site: [found[i] for i in range(len(tokens))] for site, found in out.items()}


@torch.no_grad()
def response_states(
    lm: LanguageModel, site: Site, tokens: Sequence[Tokens], *, batch_size: int = 16, progress: Progress = silent
) -> Iterator[Tensor]:
    """Yield for each sequence, in order, the activations that its response tokens are drawn from.

    (response tokens, width), in the model's data type, on the CPU: the last position of the prompt and all of the
    response but its last token. Few sequences are in memory at a time.
    """
    _check_fit(lm, tokens, 0)
    place = lm.anatomy.place(site)

    def work(rows: list[int]) -> list[Tensor]:
        states = _read(lm, place, lm.right_padded([tokens[i] for i in rows]))
        return [row[_drawn_from(tokens[i])].to("cpu", copy=True) for i, row in zip(rows, states, strict=True)]

    waiting: dict[int, Tensor] = {}
    given = 0
    with progress(f"states {site}", len(tokens)) as advance:
        for rows, found in halving(_nearly_in_order(tokens, batch_size), work):
            waiting |= zip(rows, found, strict=True)
            advance(len(rows))
            while given in waiting:
                yield waiting.pop(given)
                given += 1


def _nearly_in_order(tokens: Sequence[Tokens], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of indices: those of each few batches in a row are sorted by length."""
    for start in range(0, len(tokens), 8 * batch_size):
        for rows in by_length(tokens[start : start + 8 * batch_size], batch_size):
            yield [start + i for i in rows]


def _drawn_from(tokens: Tokens) -> slice:
    """Return the positions that the tokens of the response are drawn from."""
    first = len(tokens.prompt) - 1
    return slice(first, first + len(tokens.response))


def _read(lm: LanguageModel, place: Place, batch: Batch) -> Tensor:
    """Return the activations at a place, (batch, columns, width)."""
    return read(lm.model, [place], batch, lambda states: states)[place]


def _pooled(states: Tensor, tokens: Tokens, pool: Pool) -> Tensor:
    """Pool one row of states, (columns, width), right padded."""
    start, stop = len(tokens.prompt), len(tokens.prompt) + len(tokens.response)
    if pool == "last_prompt":
        return states[start - 1]
    if pool == "last_response":
        return states[stop - 1]
    if pool == "response_mean":
        return states[start:stop].float().mean(0)
    return states[:stop]


@torch.no_grad()
def response_logits(
    lm: LanguageModel, tokens: Sequence[Tokens], steering: Steering = Steering(), *, batch_size: int = 16
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index, logits) for each sequence, longest first: (response tokens, vocabulary), float32.

    Teacher forced, with the scopes of cached decoding. The steering's prompt part is not applied: the prompt is given.
    """
    yield from _teacher_forced(lm, tokens, steering, batch_size, lambda i, logits: logits)


def _teacher_forced(
    lm: LanguageModel,
    tokens: Sequence[Tokens],
    steering: Steering,
    batch_size: int,
    keep: Callable[[int, Tensor], T],
) -> Iterator[tuple[int, T]]:
    """Yield (index, `keep(index, logits)`) for each sequence; see `response_logits`."""

    def work(rows: list[int]) -> list[tuple[int, T]]:
        logits = batch_logits(lm, [tokens[i] for i in rows], steering)
        return [(i, keep(i, row)) for i, row in zip(rows, logits, strict=True)]

    for _, found in halving(by_length(tokens, batch_size), work):
        yield from found
        del found  # makes room for the next batch


@torch.no_grad()
def batch_logits(
    lm: LanguageModel, tokens: Sequence[Tokens], steering: Steering = Steering(), observe: Observer | None = None
) -> Iterator[Tensor]:
    """Yield what `response_logits` does for one batch, in order, whether it fits into the memory or not.

    `observe` sees every site that is edited before anything is yielded.
    """
    if steering.decode is not None:
        raise SteerbenchError("a steering that chooses among candidates gives no probability to a given response.")
    _check_fit(lm, tokens, 0)
    # what is folded is neither to be seen nor kept from what stands behind an end token
    hooked = observe is not None or any(set(t.response[:-1]) & set(lm.end_ids) for t in tokens)
    batch = lm.right_padded(tokens)
    positions = Positions(batch, lm.end_ids, cached=False)
    folding = nullcontext(steering.edits) if hooked else folded(lm.anatomy, steering.edits)
    with folding as edits, steered(lm.model, lm.anatomy, edits, positions, observe):
        out = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    for one, row in zip(tokens, out, strict=True):
        yield _given_logits(lm, one, steering, row)


def _given_logits(lm: LanguageModel, tokens: Tokens, steering: Steering, row: Tensor) -> Tensor:
    """Return the logits that the tokens of a response are drawn from; `row` is (columns, vocabulary)."""
    logits = row[_drawn_from(tokens)].float()
    _check_finite(logits, _state_source(steering))
    logits = _processed(lm, tokens, steering, logits)
    _check_finite(logits, "a logits processor")
    return logits


def _processed(lm: LanguageModel, tokens: Tokens, steering: Steering, logits: Tensor) -> Tensor:
    """Run the steering's logits processors over a given response, one prefix at a time."""
    ids = torch.tensor([tokens.prompt + tokens.response], device=lm.device)
    prompt = ids[:, : len(tokens.prompt)]
    for part in steering.logits:
        processor = part.processor(lm, prompt, torch.ones_like(prompt))
        steps = [processor(ids[:, : prompt.shape[1] + t], row[None])[0] for t, row in enumerate(logits)]
        logits = torch.stack(steps) if steps else logits
    return logits


def log_probs(
    lm: LanguageModel, tokens: Sequence[Tokens], steering: Steering = Steering(), *, batch_size: int = 16
) -> list[Tensor]:
    """Return for each sequence the log-probability of its response tokens, (response tokens,), float32 on the CPU."""

    def chosen(i: int, logits: Tensor) -> Tensor:
        target = torch.tensor(tokens[i].response, device=logits.device, dtype=torch.long)[:, None]
        return logits.log_softmax(-1).gather(-1, target)[:, 0].cpu()

    out = dict(_teacher_forced(lm, tokens, steering, batch_size, chosen))
    return [out[i] for i in range(len(tokens))]
