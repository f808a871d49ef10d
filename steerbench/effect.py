"""What a steering does to the states and tokens of its own responses."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steerbench.dialogue import Dialogue
from steerbench.generation import response_logits
from steerbench.hooks import Observer
from steerbench.lm import LanguageModel, Tokens, by_length
from steerbench.progress import Progress, silent
from steerbench.response import Response
from steerbench.sites import Site
from steerbench.steering import Steering


def effect(
    lm: LanguageModel,
    dialogues: Sequence[Dialogue],
    responses: Sequence[Response],
    steering: Steering,
    *,
    batch_size: int = 16,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Return, over all tokens of responses that a steering gave, what it did to them.

    - `tokens`: how many there are
    - `argmax_changed`: share of them at which the unsteered model, with the plain prompt, would put another token first
    - `edit_norm`: by site, mean and 95th percentile of |h' - h| / |h| where the tokens are drawn from

    Empty for a steering that does nothing, and where no response has a token.
    """
    given = [(d, r) for d, r in zip(dialogues, responses, strict=True) if r.ids]
    if steering == Steering() or not given:
        return {}
    plain = [Tokens(lm.tokens(d).prompt, r.ids) for d, r in given]
    seen = [Tokens(lm.tokens(steering.apply_prompt(d)).prompt, r.ids) for d, r in given]
    changed: list[Tensor] = []
    norms: dict[str, list[Tensor]] = {}
    with progress("effect", len(given)) as advance:
        for rows in by_length(seen, batch_size):
            observe = partial(_note_norms, norms, [seen[i] for i in rows])
            after = _first_choices(lm, [seen[i] for i in rows], replace(steering, decode=None), observe)
            before = _first_choices(lm, [plain[i] for i in rows], Steering())
            changed += [a != b for a, b in zip(after, before, strict=True)]
            advance(len(rows))
    flags = torch.cat(changed).float()
    norm = {site: _summary(torch.cat(values)) for site, values in norms.items()}
    return {"tokens": len(flags), "argmax_changed": float(flags.mean()), "edit_norm": norm}


def _first_choices(
    lm: LanguageModel, tokens: Sequence[Tokens], steering: Steering, observe: Observer | None = None
) -> list[Tensor]:
    """Return for each response of one batch the token ranked first at each of its positions, (response tokens,)."""
    logits = response_logits(lm, tokens, steering, batch_size=len(tokens), observe=observe)
    found = {i: row.argmax(-1).cpu() for i, row in logits}
    return [found[i] for i in range(len(tokens))]


def _note_norms(
    norms: dict[str, list[Tensor]], tokens: Sequence[Tokens], site: Site, before: Tensor, after: Tensor
) -> None:
    """Keep |h' - h| / |h| of the positions that the response tokens of a batch are drawn from."""
    lengths = (after.float() - before.float()).norm(dim=-1) / before.float().norm(dim=-1).clamp_min(1e-12)
    for row, t in zip(lengths.cpu(), tokens, strict=True):
        first = len(t.prompt) - 1
        norms.setdefault(str(site), []).append(row[first : first + len(t.response)])


def _summary(values: Tensor) -> dict[str, float]:
    return {"mean": float(values.mean()), "p95": float(values.quantile(0.95))}
