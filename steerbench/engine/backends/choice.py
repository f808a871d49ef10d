"""Responses of another engine: continuations of prompts, and the choice among them where a steering makes one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from steerbench.data.dialogue import Dialogue
from steerbench.decoding import Decoding
from steerbench.engine.backends.generation_engine import GenerationEngine
from steerbench.engine.decode import check_choice, choosing
from steerbench.engine.guidance import Given, Passes
from steerbench.engine.prompting import prompt_tokens
from steerbench.models.language_model import LanguageModel, Tokens
from steerbench.models.response import Response
from steerbench.progress import Progress
from steerbench.seeds import generator_for, seed_for
from steerbench.steering.blocks import Candidate
from steerbench.steering.steering import Steering

if TYPE_CHECKING:
    from steerbench.models.reward import Reward


def responses_of(  # noqa: PLR0913, PLR0917
    engine: GenerationEngine,
    lm: LanguageModel,
    dialogues: Sequence[Dialogue],
    steering: Steering,
    decoding: Decoding,
    seed: tuple[int, int],
    reward: "Reward | None",
    batch_size: int,
    progress: Progress,
    *,
    endless: bool = False,
) -> list[Response]:
    """Return one response per dialogue; `seed` is a seed and a sample.

    Raises SteerbenchError if the engine cannot carry the steering, and like `generate`.
    """
    steerings = [steering]
    return responses_of_each(
        engine, lm, dialogues, steerings, decoding, seed, reward, batch_size, progress, endless=endless
    )[0]


@torch.no_grad()
def responses_of_each(  # noqa: PLR0913, PLR0917
    engine: GenerationEngine,
    lm: LanguageModel,
    dialogues: Sequence[Dialogue],
    steerings: Sequence[Steering],
    decoding: Decoding,
    seed: tuple[int, int],
    reward: "Reward | None",
    batch_size: int,
    progress: Progress,
    *,
    endless: bool = False,
) -> list[list[Response]]:
    """Return what `responses_of` does for each of several steerings, in one batch where the engine can hold them."""
    for steering in steerings:
        if steering.decode is not None and not endless:
            check_choice(steering.decode, decoding, reward)
        engine.check(steering)
    tokens = [prompt_tokens(lm, s, dialogues, batch_size, decoding.max_new_tokens) for s in steerings]
    found = engine.continued_each(
        lm,
        tokens,
        [s.edits for s in steerings],
        decoding,
        [_seeds(s, seed, dialogues) for s in steerings],
        endless=endless,
        batch_size=batch_size,
        progress=progress,
    )
    drawn = [[[lm.cut(ids) for ids in of_prompt] for of_prompt in of_steering] for of_steering in found]
    return [
        _responses(lm, theirs, dialogues, steering, seed, reward, batch_size, responses)
        for theirs, steering, responses in zip(tokens, steerings, drawn, strict=True)
    ]


def _seeds(steering: Steering, seed: tuple[int, int], dialogues: Sequence[Dialogue]) -> list[list[int]]:
    """Return what each continuation of each prompt is drawn by; without a choice, as the model alone is."""
    (base, sample), count = seed, steering.decode.candidates if steering.decode else 1
    names = [("sample", sample)] if count == 1 else [("candidate", sample, k) for k in range(count)]
    return [[seed_for(base, *name, dialogue) for name in names] for dialogue in dialogues]


def _responses(  # noqa: PLR0913, PLR0917
    lm: LanguageModel,
    tokens: Sequence[Tokens],
    dialogues: Sequence[Dialogue],
    steering: Steering,
    seed: tuple[int, int],
    reward: "Reward | None",
    batch_size: int,
    drawn: Sequence[Sequence[Response]],
) -> list[Response]:
    """Return one of the responses drawn for each prompt: the one there is, or the one that is chosen."""
    if steering.decode is None:
        return [one for (one,) in drawn]
    chosen: dict[int, Response] = {}
    for rows in lm.batches(tokens, batch_size):
        best = _chosen(lm, tokens, dialogues, steering, seed, reward, rows, [drawn[i] for i in rows])
        chosen |= dict(zip(rows, best, strict=True))
    return [chosen[i] for i in range(len(dialogues))]


def _chosen(  # noqa: PLR0913, PLR0917
    lm: LanguageModel,
    tokens: Sequence[Tokens],
    dialogues: Sequence[Dialogue],
    steering: Steering,
    seed: tuple[int, int],
    reward: "Reward | None",
    rows: Sequence[int],
    drawn: Sequence[Sequence[Response]],
) -> list[Response]:
    """Return what the decode part chooses for some of the prompts."""
    part, asked = steering.decode, [dialogues[i] for i in rows]
    assert part is not None
    given = Given(asked, reward, [generator_for(*seed, "choice", dialogue) for dialogue in asked])
    batch = lm.left_padded([tokens[i] for i in rows])
    passes = Passes(lm, steering.edits, batch.input_ids.shape[1], prompt=steering.prompt)
    candidates = [[Candidate(response, finished=True) for response in row] for row in drawn]
    kept = choosing(part, lm, batch, given, passes)(range(len(rows)), candidates)
    draws = (part.candidates,) if part.candidates > 1 else ()
    return [replace(row[first], draws=draws) for row, (first, *_) in zip(drawn, kept, strict=True)]
