"""Generate with several steerings: in one batch where an engine can hold them, else one after another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from steerbench.data.dialogue import Dialogue, dialogues_of
from steerbench.decoding import Decoding
from steerbench.engine.backends.choice import responses_of_each
from steerbench.engine.backends.generation_engine import GenerationEngine
from steerbench.engine.generate import generate
from steerbench.models.language_model import LanguageModel
from steerbench.models.response import Response
from steerbench.progress import Progress, silent
from steerbench.steering.steering import Steering

if TYPE_CHECKING:
    from steerbench.models.reward import Reward


def generate_each(  # noqa: PLR0913 - as generate
    lm: LanguageModel,
    prompts: str | Dialogue | Sequence[str | Dialogue],
    steerings: Sequence[Steering],
    decoding: Decoding = Decoding(),
    *,
    seed: int = 0,
    sample: int = 0,
    reward: "Reward | None" = None,
    batch_size: int = 16,
    engine: GenerationEngine | None = None,
    progress: Progress = silent,
) -> list[list[Response]]:
    """Return what `generate` does for each of several steerings: for each one response per prompt.

    vLLM holds all of them in one batch: constants at one place as a table of vectors, anything else behind a mask of
    its prompts. Raises what `generate` does.
    """
    dialogues, steerings = dialogues_of(prompts), list(steerings)
    if engine is not None and steerings:
        return responses_of_each(
            engine, lm, dialogues, steerings, decoding, (seed, sample), reward, batch_size, progress
        )
    return [
        generate(
            lm,
            dialogues,
            steering,
            decoding,
            seed=seed,
            sample=sample,
            reward=reward,
            batch_size=batch_size,
            progress=progress,
        )
        for steering in steerings
    ]
