"""One step of decoding: rows that wait for their next token, and what there is to score it by."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from steerbench.data.dialogue import Dialogue
from steerbench.models.language_model import LanguageModel
from steerbench.models.reward import Reward


class Step(ABC):
    """Rows that each wait for their next token, and what there is to score it by.

    States are those that the model is decoded with, the steering's edits included.
    """

    lm: LanguageModel
    """The model that is steered."""
    logits: Tensor
    """Of the next token, after the parts before this one, (rows, vocabulary), float32."""

    @property
    @abstractmethod
    def states(self) -> Tensor:
        """At `final`, where the next token is drawn from, (rows, width), float32."""

    @abstractmethod
    def ahead(self, tokens: Tensor) -> Tensor:
        """Return the states at `final` behind each of several next tokens, (rows, k, width); `tokens` is (rows, k)."""

    @abstractmethod
    def logits_of(self, role: str) -> Tensor:
        """Return the logits of a model that the part names, which reads the same ids, (rows, vocabulary), float32."""

    @abstractmethod
    def logits_of_twin(self) -> Tensor:
        """Return the logits of the twin that the part asks for, (rows, vocabulary), float32."""

    @abstractmethod
    def rewards_ahead(self, tokens: Tensor) -> Tensor:
        """Return the guiding reward of each response with each of several next tokens behind it, (rows, k), on the CPU.

        `tokens` is (rows, k). 0 in rows that have ended: nothing is asked about them.
        """

    @property
    @abstractmethod
    def responses(self) -> list[tuple[int, ...]]:
        """The ids that each row has of its response so far. A row that has ended has an end token among them."""

    @property
    @abstractmethod
    def dialogues(self) -> Sequence[Dialogue]:
        """The dialogue of each row. Raises SteerbenchError where none were given."""

    @property
    @abstractmethod
    def reward(self) -> Reward:
        """The guiding reward. Raises SteerbenchError where none was given."""
