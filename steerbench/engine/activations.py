"""Read the activations of given texts at a site, pooled or position by position."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from steerbench.engine.hooks import read
from steerbench.errors import SteerbenchError, suggest
from steerbench.models.batching import halving
from steerbench.models.language_model import LanguageModel, Tokens
from steerbench.models.pieces import inner_size
from steerbench.models.sites import Place, Site
from steerbench.progress import Progress, silent

Pool = Literal["last_prompt", "last_response", "response_mean", "all"]
"""Which positions of a text are read.

- `last_prompt`: the last token of the prompt, (width,); there the first token of the response is drawn from
- `last_response`: the last token of the response, (width,)
- `response_mean`: the mean over the tokens of the response, (width,)
- `all`: every token of prompt and response, (tokens, width)
"""

OF_RESPONSES: tuple[Pool, ...] = ("last_response", "response_mean")


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
    found = pooled_at(lm, sites, [pool], tokens, batch_size=batch_size, progress=progress)
    return {site: found[site, pool] for site in sites}


@torch.no_grad()
def pooled_at(
    lm: LanguageModel,
    sites: Sequence[Site],
    pools: Sequence[Pool],
    tokens: Sequence[Tokens],
    *,
    batch_size: int = 16,
    progress: Progress = silent,
) -> dict[tuple[Site, Pool], list[Tensor]]:
    """Return what `activations` does for each of several sites and pools, from one pass of the model."""
    for pool in pools:
        _check(pool, tokens)
    lm.check_fit(tokens, 0)
    places = {site: lm.anatomy.place(site) for site in sites}

    def work(rows: list[int]) -> dict[Place, list[list[Tensor]]]:
        def keep(states: Tensor) -> list[list[Tensor]]:
            pooled = [[_pooled(row, tokens[i], pool) for pool in pools] for i, row in zip(rows, states, strict=True)]
            return [[one.to("cpu", torch.float32, copy=True) for one in row] for row in pooled]  # frees the batch

        return read(lm.model, list(places.values()), lm.right_padded([tokens[i] for i in rows]), keep)

    out: dict[tuple[Site, Pool], dict[int, Tensor]] = {(site, pool): {} for site in sites for pool in pools}
    with progress(f"activations {_named(sites)}", len(tokens)) as advance:
        for rows, found in halving(lm.batches(tokens, batch_size, size=inner_size(lm.model)), work):
            for site, place in places.items():
                for i, row in zip(rows, found[place], strict=True):
                    for pool, one in zip(pools, row, strict=True):
                        out[site, pool][i] = one
            advance(len(rows))
    return {key: [states[i] for i in range(len(tokens))] for key, states in out.items()}


def _named(sites: Sequence[Site]) -> str:
    """Return names of sites that fit into a line."""
    names = [str(site) for site in sites]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} to {names[-1]}"


def _check(pool: Pool, tokens: Sequence[Tokens]) -> None:
    if pool not in get_args(Pool):
        raise SteerbenchError(suggest("pool", pool, list(get_args(Pool))))
    if pool in OF_RESPONSES and (empty := [i for i, t in enumerate(tokens) if not t.response]):
        raise SteerbenchError(f"pool {pool!r} needs responses; sequence {empty[0]} has none.")


@torch.no_grad()
def response_states(
    lm: LanguageModel, site: Site, tokens: Sequence[Tokens], *, batch_size: int = 16, progress: Progress = silent
) -> Iterator[Tensor]:
    """Yield for each sequence, in order, the activations that its response tokens are drawn from.

    (response tokens, width), in the model's data type, on the CPU: the last position of the prompt and all of the
    response but its last token. Few sequences are in memory at a time.
    """
    lm.check_fit(tokens, 0)
    place = lm.anatomy.place(site)

    def work(rows: list[int]) -> list[Tensor]:
        batch = lm.right_padded([tokens[i] for i in rows])
        states = read(lm.model, [place], batch, lambda states: states)[place]
        return [row[drawn_from(tokens[i])].to("cpu", copy=True) for i, row in zip(rows, states, strict=True)]

    waiting: dict[int, Tensor] = {}
    given = 0
    with progress(f"states {site}", len(tokens)) as advance:
        for rows, found in halving(_nearly_in_order(lm, tokens, batch_size), work):
            waiting |= zip(rows, found, strict=True)
            advance(len(rows))
            while given in waiting:
                yield waiting.pop(given)
                given += 1


def _nearly_in_order(lm: LanguageModel, tokens: Sequence[Tokens], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of indices: those of each few batches in a row are sorted by length."""
    for start in range(0, len(tokens), 8 * batch_size):
        for rows in lm.batches(tokens[start : start + 8 * batch_size], batch_size, size=inner_size(lm.model)):
            yield [start + i for i in rows]


def drawn_from(tokens: Tokens) -> slice:
    """Return the positions that the tokens of the response are drawn from."""
    first = len(tokens.prompt) - 1
    return slice(first, first + len(tokens.response))


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
