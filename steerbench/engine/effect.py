"""What a steering does to the states, the tokens and the next-token distributions of its own responses."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import isnan, nan
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steerbench.data.dialogue import Dialogue
from steerbench.decoding import Decoding
from steerbench.engine.activations import drawn_from
from steerbench.engine.guidance import Given
from steerbench.engine.kept_prompts import KeptPrompts
from steerbench.engine.logits import batch_logits
from steerbench.engine.prompting import prompted
from steerbench.engine.shared_prefix import leave_prompts
from steerbench.models.batching import halving
from steerbench.models.language_model import LanguageModel, Tokens
from steerbench.models.pieces import logits_size
from steerbench.models.response import Response
from steerbench.models.reward import Reward
from steerbench.models.sites import Site
from steerbench.progress import Progress, silent
from steerbench.steering.steering import Steering

WHOLE = Decoding(temperature=1.0)
"""Draws from the distribution of the model as it is."""
AT_ONCE = 64 * 2**20
"""Bytes of probabilities that are compared at once."""


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


def effect(  # noqa: PLR0913 - the settings of one call, each by name
    lm: LanguageModel,
    dialogues: Sequence[Dialogue],
    responses: Sequence[Response],
    steering: Steering,
    *,
    decoding: Decoding = WHOLE,
    reward: Reward | None = None,
    batch_size: int = 16,
    kept: KeptPrompts | None = None,
    progress: Progress = silent,
) -> Effect:
    """Compare the steered with the unsteered model, token by token, on responses that the steering gave.

    The unsteered model sees the plain prompt. Distributions are those of the model before temperature, top-k and top-p.
    Where unsteered candidates are chosen among, the KL of a response (`DecodePart.choice_kl`, which is to what they are
    drawn from) is spread over its tokens. NaN stands for a response without tokens, and for a KL that is not known:
    that of a choice among steered candidates, or among those that `decoding` draws from anything but the distribution
    of the model. Prompts that were `kept` are not read again where the steering leaves them alone. The report, empty
    for a steering that changes no distribution, and where no response has a token, holds

    - `tokens`: how many there are
    - `argmax_changed`: share of them at which the unsteered model would put another token first
    - `edit_norm`: by site, mean and 95th percentile of |h' - h| / |h| where the tokens are drawn from
    - `choice_kl`: where candidates are chosen among, whether their KL is a `bound`, an `estimate` or `unknown`
    """
    filled = [i for i, r in enumerate(responses) if r.ids]
    plain = [Tokens(lm.tokens(dialogues[i]).prompt, responses[i].ids) for i in filled]
    prompts = prompted(lm, steering, [dialogues[i] for i in filled], batch_size)
    seen = [Tokens(lm.tokens(p).prompt, responses[i].ids) for p, i in zip(prompts, filled, strict=True)]
    per_token = replace(steering, decode=None)
    left_alone = leave_prompts(per_token.edits)
    behind = kept if kept and kept.ready(t.prompt for t in [*plain, *(seen if left_alone else ())]) else None
    found: dict[int, _Compared] = {}
    norms: dict[str, list[Tensor]] = {}

    def work(rows: list[int]) -> tuple[list[_Compared], dict[str, list[Tensor]]]:
        given = Given([dialogues[filled[i]] for i in rows], reward)
        known = behind, behind if left_alone else None
        return _compare(lm, [plain[i] for i in rows], [seen[i] for i in rows], per_token, given, known)

    read = [t._replace(prompt=()) for t in seen] if behind and left_alone else seen
    with progress("effect", len(filled)) as advance:
        for rows, (compared, new) in halving(lm.batches(read, batch_size, size=logits_size(lm.model)), work):
            found |= {filled[i]: one for i, one in zip(rows, compared, strict=True)}
            norms |= {site: norms.get(site, []) + values for site, values in new.items()}
            advance(len(rows))
    kl = [
        _mean(found[i].kl) + _chosen_kl(steering, decoding, response) / len(found[i].kl) if i in found else nan
        for i, response in enumerate(responses)
    ]
    nll = [_mean(found[i].nll) if i in found else nan for i in range(len(responses))]
    report = {} if per_token == Steering() or not found else _report(list(found.values()), norms)
    return Effect(kl, nll, report | _origin_of_kl(steering, kl))


def _origin_of_kl(steering: Steering, kl: Sequence[float]) -> dict[str, str]:
    """Return what the KL of a choice among candidates is, where there is one."""
    part = steering.decode
    if part is None or (part.candidates == 1 and not part.redraws):
        return {}
    return {"choice_kl": "unknown" if all(map(isnan, kl)) else part.kl_is}


def _chosen_kl(steering: Steering, decoding: Decoding, response: Response) -> float:
    """Return what a choice among candidates adds to the KL of a response; NaN where it is not known."""
    part = steering.decode
    if part is None or (part.candidates == 1 and not part.redraws):
        return 0.0
    whole = replace(decoding, max_new_tokens=WHOLE.max_new_tokens) == WHOLE
    steered = replace(steering, decode=None) != Steering()
    known = part.choice_kl(response.draws or (part.candidates,)) if whole and not steered else None
    return nan if known is None else known


def _compare(
    lm: LanguageModel,
    plain: Sequence[Tokens],
    seen: Sequence[Tokens],
    steering: Steering,
    given: Given,
    kept: tuple[KeptPrompts | None, KeptPrompts | None],
) -> tuple[list[_Compared], dict[str, list[Tensor]]]:
    """Compare the responses of one batch, given behind the plain prompts and behind those that the steering makes.

    `kept` says what is known of these and of those. Return also |h' - h| / |h| at each site, for each response in the
    order of `seen`.
    """
    norms: dict[str, list[Tensor]] = {}
    before = list(batch_logits(lm, plain, kept=kept[0]))
    if steering == Steering():
        return [_compared(row, row, t.response) for row, t in zip(before, plain, strict=True)], norms
    columns = [slice(len(t.response)) if kept[1] else drawn_from(t) for t in seen]
    after = batch_logits(lm, seen, steering, partial(_note_norms, norms, columns), given, kept[1])
    rows = zip(after, before, seen, strict=True)
    return [_compared(steered, unsteered, t.response) for steered, unsteered, t in rows], norms


def _compared(steered: Tensor, unsteered: Tensor, response: Sequence[int]) -> _Compared:
    """Compare logits, (tokens, vocabulary) each, some tokens at a time: probabilities take as much again."""
    n_tokens = max(1, AT_ONCE // (4 * steered.shape[-1]))
    parts = zip(*(torch.split(t, n_tokens) for t in (steered, unsteered)), strict=True)
    targets = torch.split(torch.tensor(response, device=unsteered.device, dtype=torch.long), n_tokens)
    of_parts = [_some_compared(p, q, target) for (p, q), target in zip(parts, targets, strict=True)]
    return _Compared(*(torch.cat(values) for values in zip(*of_parts, strict=True)))


def _some_compared(steered: Tensor, unsteered: Tensor, target: Tensor) -> _Compared:
    log_p, log_q = steered.log_softmax(-1), unsteered.log_softmax(-1)
    gap = (log_p - log_q).masked_fill(log_p == -torch.inf, 0)  # a forbidden token adds nothing
    kl = (log_p.exp() * gap).sum(-1).clamp_min(0)
    nll = -log_q.gather(-1, target[:, None])[:, 0]
    return _Compared(kl.cpu(), nll.cpu(), (steered.argmax(-1) != unsteered.argmax(-1)).cpu())


def _note_norms(
    norms: dict[str, list[Tensor]], columns: Sequence[slice], site: Site, before: Tensor, after: Tensor
) -> None:
    """Keep |h' - h| / |h| of the columns of each row that its response tokens are drawn from."""
    lengths = (after.float() - before.float()).norm(dim=-1) / before.float().norm(dim=-1).clamp_min(1e-12)
    for row, chosen in zip(lengths.cpu(), columns, strict=True):
        norms.setdefault(str(site), []).append(row[chosen])


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _report(compared: Sequence[_Compared], norms: dict[str, list[Tensor]]) -> dict[str, Any]:
    flags = torch.cat([one.changed for one in compared]).float()
    norm = {site: _summary(torch.cat(values)) for site, values in norms.items()}
    return {"tokens": len(flags), "argmax_changed": float(flags.mean()), "edit_norm": norm}


def _summary(values: Tensor) -> dict[str, float]:
    p95 = np.quantile(values.numpy(), 0.95)  # torch's takes no more than 2**24 values
    return {"mean": float(values.mean()), "p95": float(p95)}
