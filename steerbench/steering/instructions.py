"""Prompt parts shared by methods: an instruction, replies shown before, and a choice among instructions."""

from abc import abstractmethod
from collections.abc import Sequence

from steerbench.data.dialogue import Dialogue, Turn
from steerbench.errors import SteerbenchError
from steerbench.steering.parts import PromptPart


class Instruction(PromptPart):
    """Puts a text into the system turn, behind what already stands there; a text that is there is not added again."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, dialogue: Dialogue) -> Dialogue:
        """Return the dialogue with the text in its system turn."""
        if not self.text:
            return dialogue
        if not dialogue or dialogue[0].role != "system":
            return (Turn("system", self.text), *dialogue)
        present = dialogue[0].text
        if self.text in present.split("\n\n"):
            return dialogue
        return (Turn("system", f"{present}\n\n{self.text}"), *dialogue[1:])


class Shown(PromptPart):
    """Puts questions with replies between the system turn and the dialogue, as if they had been asked before."""

    def __init__(self, questions: Sequence[str], replies: Sequence[str]) -> None:
        if len(questions) != len(replies):
            raise ValueError(f"{len(questions)} questions have {len(replies)} replies")
        self.questions, self.replies = list(questions), list(replies)

    def __call__(self, dialogue: Dialogue) -> Dialogue:
        """Return the dialogue behind what is shown; what is there already is not shown again."""
        system, rest = (dialogue[:1], dialogue[1:]) if dialogue and dialogue[0].role == "system" else ((), dialogue)
        pairs = zip(self.questions, self.replies, strict=True)
        shown = tuple(turn for q, r in pairs for turn in (Turn("user", q), Turn("assistant", r)))
        return dialogue if rest[: len(shown)] == shown else (*system, *shown, *rest)


_ROUNDING = 1e-3
"""Nats per token that the batch may make."""


class AskedPart(PromptPart):
    """A prompt part that asks the unsteered model about each dialogue before it rewrites it.

    What the model says is not generated: each of `labels` is scored as its reply, which a small model can be asked,
    too. The engine asks, whole batches at once.
    """

    labels: Sequence[str]
    """What the model may say. An argument of a subclass's constructor."""

    @abstractmethod
    def question(self, dialogue: Dialogue) -> Dialogue:
        """Return what the model is asked."""

    @abstractmethod
    def answered(self, dialogue: Dialogue, scores: Sequence[float]) -> Dialogue:
        """Return the dialogue that the model is to see; `scores` has the log-probability per token of each label."""

    def __call__(self, dialogue: Dialogue) -> Dialogue:
        """Raise SteerbenchError: without a model there is nobody to ask."""
        raise SteerbenchError(f"{type(self).__name__} asks the model about each prompt; use steerbench.generate.")


class Routed(AskedPart):
    """Adds the instruction of the label that the model gives to `ask`, put behind the user's last words.

    A label's score is its log-probability per token plus its bias; of equal ones the first is taken, and those are
    equal that a batch of another size could put in another order. `instructions` has a text for each label; an empty
    one adds nothing.
    """

    def __init__(self, ask: str, labels: Sequence[str], biases: Sequence[float], instructions: Sequence[str]) -> None:
        if not len(labels) == len(biases) == len(instructions) > 0:
            raise ValueError("a router has a bias and an instruction for each of its labels")
        self.ask, self.labels = ask, list(labels)
        self.biases, self.instructions = list(biases), list(instructions)

    def question(self, dialogue: Dialogue) -> Dialogue:
        """Return the user's last words with the question behind them, alone."""
        return (Turn("user", f"{dialogue[-1].text}\n\n{self.ask}"),)

    def route(self, scores: Sequence[float]) -> int:
        """Return the index of the label that wins."""
        biased = [score + bias for score, bias in zip(scores, self.biases, strict=True)]
        return next(i for i, score in enumerate(biased) if score >= max(biased) - _ROUNDING)

    def answered(self, dialogue: Dialogue, scores: Sequence[float]) -> Dialogue:
        """Add the instruction of the label that wins."""
        return Instruction(self.instructions[self.route(scores)])(dialogue)
