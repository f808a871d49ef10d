"""How candidates are drawn and chosen, where a steering has a decode part."""

from collections.abc import Callable, Sequence
from typing import Any

from steerbench.data.dialogue import Dialogue
from steerbench.decoding import Decoding
from steerbench.engine.guidance import Given, Passes
from steerbench.errors import SteerbenchError
from steerbench.models.language_model import LanguageModel
from steerbench.models.response import Response
from steerbench.models.reward import Reward
from steerbench.seeds import generator_for
from steerbench.steering.parts import DecodePart
from steerbench.steering.steering import Steering

Draw = Callable[[Any], list[Response]]
"""Draws one response for each dialogue; another name is an independent draw."""


def check_choice(part: DecodePart, decoding: Decoding, reward: Reward | None) -> None:
    """Raise SteerbenchError if there is nothing to choose by, or nothing to choose among."""
    if reward is None:
        raise SteerbenchError("this steering chooses among candidates and needs a reward model; give one.")
    if decoding.temperature == 0 and part.candidates > 1:
        raise SteerbenchError("greedy candidates are all alike; to choose among them, set --temperature above 0.")


def draw_candidates(part: DecodePart, sample: int, draw: Draw) -> list[tuple[Response, ...]]:
    """Return the candidates for each dialogue.

    Several are draws of their own: one that is also the unsteered response could never lose against it.
    """
    names: list[Any] = [("candidate", sample, k) for k in range(part.candidates)]
    draws = [draw(name) for name in (names if len(names) > 1 else [("sample", sample)])]
    return list(zip(*draws, strict=True))


def choose(
    lm: LanguageModel,
    steering: Steering,
    dialogue: Dialogue,
    candidates: Sequence[Response],
    reward: Reward | None,
    seed: tuple[Any, ...],
) -> Response:
    """Return the candidate that the steering's decode part takes; what it draws, it draws by `seed`."""
    assert steering.decode is not None
    prompt = lm.left_padded([lm.tokens(steering.apply_prompt(dialogue))])
    given = Given([dialogue], reward, [generator_for(*seed, "choice", dialogue)])
    passes = Passes(lm, steering.edits, prompt.input_ids.shape[1])
    context = given.context(steering.decode, lm, prompt, passes)
    return candidates[steering.decode.choose_in(context, candidates)]
