"""Score given responses under a steering: logits and log-probabilities, teacher forced."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from steerbench.data.dialogue import Dialogue
from steerbench.engine.activations import drawn_from
from steerbench.engine.bias_folding import folded
from steerbench.engine.finiteness import check_finite, origin_of
from steerbench.engine.forward_passes import CACHE, places, run
from steerbench.engine.guidance import Given, Passes
from steerbench.engine.install import Observer, steered
from steerbench.engine.kept_prompts import KeptPrompts
from steerbench.engine.positions import Positions
from steerbench.engine.shared_prefix import leave_prompts
from steerbench.engine.steps import GivenStep
from steerbench.errors import SteerbenchError
from steerbench.models.batching import halving, pad
from steerbench.models.language_model import Batch, LanguageModel, Tokens
from steerbench.models.modes import evaluating
from steerbench.models.pieces import logits_size
from steerbench.models.reward import Reward
from steerbench.progress import Progress, silent
from steerbench.steering.reweighting import Reweighting
from steerbench.steering.steering import Steering

T = TypeVar("T")


def response_logits(
    lm: LanguageModel,
    tokens: Sequence[Tokens],
    steering: Steering = Steering(),
    *,
    batch_size: int = 16,
    dialogues: Sequence[Dialogue] | None = None,
    reward: Reward | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index, logits) for each sequence, longest first: (response tokens, vocabulary), float32.

    Teacher forced, with the scopes of cached decoding. The steering's prompt part is not applied: the prompt is given.
    `dialogues`, one for each sequence, and `reward` are for logits parts that ask for them.
    """
    given = Given(dialogues, reward)
    yield from _teacher_forced(lm, tokens, steering, batch_size, given, lambda i, logits: logits)


def log_probs(  # noqa: PLR0913 - as `response_logits`
    lm: LanguageModel,
    tokens: Sequence[Tokens],
    steering: Steering = Steering(),
    *,
    batch_size: int = 16,
    dialogues: Sequence[Dialogue] | None = None,
    reward: Reward | None = None,
    kept: KeptPrompts | None = None,
    progress: Progress = silent,
) -> list[Tensor]:
    """Return for each sequence the log-probability of its response tokens, (response tokens,), float32 on the CPU.

    Prompts that were `kept` are not read again, nor one prompt for each of its responses, where edits leave it alone.
    """

    def chosen(i: int, logits: Tensor) -> Tensor:
        target = torch.tensor(tokens[i].response, device=logits.device, dtype=torch.long)[:, None]
        return logits.log_softmax(-1).gather(-1, target)[:, 0].cpu()

    out: dict[int, Tensor] = {}
    with progress("log-probabilities", len(tokens)) as advance:
        for i, found in _teacher_forced(lm, tokens, steering, batch_size, Given(dialogues, reward), chosen, kept):
            out[i] = found
            advance(1)
    return [out[i] for i in range(len(tokens))]


@torch.no_grad()
def _teacher_forced(
    lm: LanguageModel,
    tokens: Sequence[Tokens],
    steering: Steering,
    batch_size: int,
    given: Given,
    keep: Callable[[int, Tensor], T],
    kept: KeptPrompts | None = None,
) -> Iterator[tuple[int, T]]:
    """Yield (index, `keep(index, logits)`) for each sequence; see `response_logits` and `log_probs`."""
    usable = kept is not None and leave_prompts(steering.edits) and kept.ready(one.prompt for one in tokens)
    behind = kept if usable else None

    def work(rows: list[int]) -> list[tuple[int, T]]:
        logits = batch_logits(lm, [tokens[i] for i in rows], steering, given=given.of(rows), kept=behind)
        return [(i, keep(i, row)) for i, row in zip(rows, logits, strict=True)]

    read = [one._replace(prompt=()) for one in tokens] if behind else tokens
    for _, found in halving(lm.batches(read, batch_size, size=logits_size(lm.model)), work):
        yield from found
        del found  # makes room for the next batch


@torch.no_grad()
def batch_logits(
    lm: LanguageModel,
    tokens: Sequence[Tokens],
    steering: Steering = Steering(),
    observe: Observer | None = None,
    given: Given = Given(),
    kept: KeptPrompts | None = None,
) -> Iterator[Tensor]:
    """Yield what `response_logits` does for one batch, in order, whether it fits into the memory or not.

    `observe` sees every site that is edited before anything is yielded: all columns, right padded. Prompts that are
    `kept` and ready are not read again, which the edits must leave alone: then it sees those that responses are drawn
    from.
    """
    if steering.decode is not None:
        raise SteerbenchError("a steering that chooses among candidates gives no probability to a given response.")
    lm.check_fit(tokens, 0)
    rows = _behind(lm, tokens, steering, observe, kept) if kept else _read_whole(lm, tokens, steering, observe)
    for i, (one, logits) in enumerate(zip(tokens, rows, strict=True)):
        check_finite(logits, origin_of(steering))
        processed = _processed(lm, one, steering, logits, given.of([i]))
        check_finite(processed, "a logits processor")
        yield processed


def _read_whole(
    lm: LanguageModel, tokens: Sequence[Tokens], steering: Steering, observe: Observer | None
) -> Iterator[Tensor]:
    """Yield the model's logits, with prompts and responses read in one pass."""
    # what is folded is neither to be seen nor kept from what stands behind an end token
    hooked = observe is not None or any(set(t.response[:-1]) & set(lm.end_ids) for t in tokens)
    batch = lm.right_padded(tokens)
    positions = Positions(batch, lm.end_ids, cached=False)
    folding = nullcontext(steering.edits) if hooked else folded(lm.anatomy, steering.edits)
    with evaluating(lm.model), folding as edits, steered(lm.model, lm.anatomy, edits, positions, observe):
        out = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    for one, row in zip(tokens, out, strict=True):
        yield row[drawn_from(one)].float()


def _behind(
    lm: LanguageModel, tokens: Sequence[Tokens], steering: Steering, observe: Observer | None, kept: KeptPrompts
) -> Iterator[Tensor]:
    """Yield the model's logits, with what responses are drawn from read behind the kept prompts."""
    prompts = lm.left_padded(tokens)
    cache = kept.in_front(prompts)
    ids, real = (t.to(lm.device) for t in pad([t.prompt[-1:] + t.response[:-1] for t in tokens], lm.pad_id))
    known = prompts.input_ids.shape[1] - 1
    mask = torch.cat([prompts.attention_mask[:, :known], real], dim=1)
    whole = Batch(torch.cat([prompts.input_ids[:, :known], ids], dim=1), mask, prompts.prompt_ends)
    positions = Positions(whole, lm.end_ids, cached=True)
    positions.begin_behind(known)
    with evaluating(lm.model), steered(lm.model, lm.anatomy, steering.edits, positions, observe):
        chosen = {"position_ids": places(mask)[:, known:], CACHE: cache, "use_cache": True}
        out = run(lm.model, ids, mask, **chosen).logits
    for one, row in zip(tokens, out, strict=True):
        yield row[: len(one.response)].float()


def _processed(lm: LanguageModel, tokens: Tokens, steering: Steering, logits: Tensor, given: Given) -> Tensor:
    """Run the logits parts over a given response, (tokens, vocabulary): at once, or one prefix at a time."""
    ids = torch.tensor([tokens.prompt + tokens.response], device=lm.device)
    end = len(tokens.prompt)
    prompt = Batch(ids[:, :end], torch.ones_like(ids[:, :end]), [end])
    passes = Passes(lm, steering.edits, end, prompt=steering.prompt)
    for part in steering.logits:
        if not len(logits):
            break
        context = given.context(part, lm, prompt, passes)
        if isinstance(part, Reweighting):
            logits = part.reweighted(GivenStep(part, context, passes, tokens, logits))
            continue
        processor = part.processor_in(context)
        steps = [processor(ids[:, : end + t], row[None])[0] for t, row in enumerate(logits)]
        logits = torch.stack(steps)
    return logits
