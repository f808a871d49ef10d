"""What a steering does to the states, the tokens and the next-token distributions of its own responses."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import nan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steerbench.dialogue import Dialogue
from steerbench.generation import response_logits
from steerbench.lm import LanguageModel, Tokens, by_length
from steerbench.progress import Progress, silent
from steerbench.response import Response
from steerbench.sites import Site
from steerbench.steering import Steering


class Effect(NamedTuple):
    """What `effect` found."""

    kl: list[float]
    """For each response, mean over its tokens of KL(steered || unsteered) of the next-token distributions, in nats."""
    nll: list[float]
    """For each response, mean over its tokens of -log p by the unsteered model, in nats."""
    report: dict[str, Any]
    """What it did to tokens and states, over all of them; see `effect`."""


class _Compared(NamedTuple):
    """One response: values per token, (tokens,), on the CPU."""

    kl: Tensor
    nll: Tensor
    changed: Tensor


def effect(
    lm: LanguageModel,
    dialogues: Sequence[Dialogue],
    responses: Sequence[Response],
    steering: Steering,
    *,
    batch_size: int = 16,
    progress: Progress = silent,
) -> Effect:
    """Compare the steered with the unsteered model, token by token, on responses that the steering gave.

    The unsteered model sees the plain prompt. Distributions are those of the model before temperature, top-k and top-p.
    Where candidates are chosen among, their KL per response (`DecodePart.sequence_kl`) is spread over its tokens. NaN
    stands for a response without tokens, and for a KL that is not known. The report, empty for a steering that changes
    no distribution, and where no response has a token, holds

    - `tokens`: how many there are
    - `argmax_changed`: share of them at which the unsteered model would put another token first
    - `edit_norm`: by site, mean and 95th percentile of |h' - h| / |h| where the tokens are drawn from
    """
    given = [i for i, r in enumerate(responses) if r.ids]
    plain = [Tokens(lm.tokens(dialogues[i]).prompt, responses[i].ids) for i in given]
    seen = [Tokens(lm.tokens(steering.apply_prompt(dialogues[i])).prompt, responses[i].ids) for i in given]
    per_token = replace(steering, decode=None)
    found: dict[int, _Compared] = {}
    norms: dict[str, list[Tensor]] = {}
    with progress("effect", len(given)) as advance:
        for rows in by_length(seen, batch_size):
            compared = _compare(lm, [plain[i] for i in rows], [seen[i] for i in rows], per_token, norms)
            found |= {given[i]: one for i, one in zip(rows, compared, strict=True)}
            advance(len(rows))
    shared = steering.decode.sequence_kl if steering.decode else 0.0
    everyone = range(len(responses))
    kl = [_mean(found[i].kl) + _spread(shared, len(found[i].kl)) if i in found else nan for i in everyone]
    nll = [_mean(found[i].nll) if i in found else nan for i in everyone]
    silent_steering = per_token == Steering() or not found
    return Effect(kl, nll, {} if silent_steering else _report(list(found.values()), norms))


def _compare(
    lm: LanguageModel,
    plain: Sequence[Tokens],
    seen: Sequence[Tokens],
    steering: Steering,
    norms: dict[str, list[Tensor]],
) -> list[_Compared]:
    """Compare the responses of one batch, given behind the plain prompts and behind those that the steering makes."""
    before = dict(response_logits(lm, plain, batch_size=len(plain)))
    if steering == Steering():
        return [_compared(before[i], before[i], t.response) for i, t in enumerate(plain)]
    observe = partial(_note_norms, norms, seen)
    after = response_logits(lm, seen, steering, batch_size=len(seen), observe=observe)
    found = {i: _compared(logits, before.pop(i), seen[i].response) for i, logits in after}
    return [found[i] for i in range(len(seen))]


def _compared(steered: Tensor, unsteered: Tensor, response: Sequence[int]) -> _Compared:
    """Compare logits, (tokens, vocabulary) each."""
    log_p, log_q = steered.log_softmax(-1), unsteered.log_softmax(-1)
    gap = (log_p - log_q).masked_fill(log_p == -torch.inf, 0)  # a forbidden token adds nothing
    kl = (log_p.exp() * gap).sum(-1).clamp_min(0)
    target = torch.tensor(response, device=log_q.device, dtype=torch.long)[:, None]
    nll = -log_q.gather(-1, target)[:, 0]
    return _Compared(kl.cpu(), nll.cpu(), (steered.argmax(-1) != unsteered.argmax(-1)).cpu())


def _note_norms(
    norms: dict[str, list[Tensor]], tokens: Sequence[Tokens], site: Site, before: Tensor, after: Tensor
) -> None:
    """Keep |h' - h| / |h| of the positions that the response tokens of a batch are drawn from."""
    lengths = (after.float() - before.float()).norm(dim=-1) / before.float().norm(dim=-1).clamp_min(1e-12)
    for row, t in zip(lengths.cpu(), tokens, strict=True):
        first = len(t.prompt) - 1
        norms.setdefault(str(site), []).append(row[first : first + len(t.response)])


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _spread(sequence_kl: float | None, n_tokens: int) -> float:
    return nan if sequence_kl is None else sequence_kl / n_tokens


def _report(compared: Sequence[_Compared], norms: dict[str, list[Tensor]]) -> dict[str, Any]:
    flags = torch.cat([one.changed for one in compared]).float()
    norm = {site: _summary(torch.cat(values)) for site, values in norms.items()}
    return {"tokens": len(flags), "argmax_changed": float(flags.mean()), "edit_norm": norm}


def _summary(values: Tensor) -> dict[str, float]:
    return {"mean": float(values.mean()), "p95": float(values.quantile(0.95))}
