"""Who generates: what an engine is given, what it gives back, and which parts of a steering it can carry."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from steerbench.decoding import Decoding
from steerbench.errors import SteerbenchError
from steerbench.models.language_model import LanguageModel, Tokens
from steerbench.progress import Progress, silent
from steerbench.steering.parts import PlacedEdit
from steerbench.steering.steering import Steering


class GenerationEngine(ABC):
    """Continues prompts under a steering, in place of transformers, the reference and the default.

    Prompt parts are applied before, and a choice among whole responses is made behind: what an engine has to carry are
    edits. Rewards, KL and states are read by transformers whatever the engine.
    """

    name: str
    """As `--engine` and records call it."""

    @abstractmethod
    def fault(self, steering: Steering) -> str | None:
        """Return what of a steering the engine cannot carry, and why; None if it carries all of it."""

    def check(self, steering: Steering) -> None:
        """Raise SteerbenchError that names the part which the engine cannot carry."""
        if fault := self.fault(steering):
            raise SteerbenchError(
                f"engine {self.name} cannot carry {fault}; it carries prompts, edits without a state that is read off "
                f"the prompt, gates, and a choice among whole responses. --engine transformers carries everything."
            )

    @abstractmethod
    def continued(  # noqa: PLR0913 - the settings of one call, each by name
        self,
        lm: LanguageModel,
        prompts: Sequence[Tokens],
        edits: Sequence[PlacedEdit],
        decoding: Decoding,
        seeds: Sequence[Sequence[int]],
        *,
        endless: bool = False,
        batch_size: int = 16,
        progress: Progress = silent,
    ) -> list[list[list[int]]]:
        """Return the new ids of each continuation of each prompt, up to its end token at least.

        `seeds` has one seed for each continuation, of which greedy decoding has one. Draws are those of transformers:
        the t-th token of a continuation is drawn by the t-th number of its seed. `endless` forbids end tokens. Raises
        SteerbenchError if an edit gives NaN, or the engine does not compute what transformers does.
        """

    def continued_each(  # noqa: PLR0913 - the settings of one call, each by name
        self,
        lm: LanguageModel,
        prompts: Sequence[Sequence[Tokens]],
        edits: Sequence[Sequence[PlacedEdit]],
        decoding: Decoding,
        seeds: Sequence[Sequence[Sequence[int]]],
        *,
        endless: bool = False,
        batch_size: int = 16,
        progress: Progress = silent,
    ) -> list[list[list[list[int]]]]:
        """Return what `continued` does for each of several steerings, with prompts and seeds of its own.

        One after another, unless an engine can hold several in one batch.
        """
        more: dict[str, Any] = {"endless": endless, "batch_size": batch_size, "progress": progress}
        calls = zip(prompts, edits, seeds, strict=True)
        return [self.continued(lm, theirs, placed, decoding, drawn, **more) for theirs, placed, drawn in calls]

    @property
    def facts(self) -> dict[str, str]:
        """Versions and settings for the environment of a record."""
        return {}

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """End what was started; it is started again when it is needed."""

    @abstractmethod
    def peak_memory_mb(self) -> float:
        """Return the peak memory in MB since it was asked for last."""
