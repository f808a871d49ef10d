"""The prompt parts of a steering, applied: those that ask the model about a dialogue get their answers here."""

from collections.abc import Sequence

from torch import Tensor

from steerbench.data.dialogue import Dialogue
from steerbench.engine.logits import log_probs
from steerbench.models.language_model import LanguageModel
from steerbench.steering.instructions import AskedPart
from steerbench.steering.steering import Steering


def prompted(
    lm: LanguageModel, steering: Steering, dialogues: Sequence[Dialogue], batch_size: int = 16
) -> list[Dialogue]:
    """Return the dialogues that the model is to see: all prompt parts applied, in order.

    A part that asks is given one forward pass for each of its labels and dialogues, in batches, of the model as it is.
    Raises SteerbenchError where what is asked does not fit the context.
    """
    seen = list(dialogues)
    for part in steering.prompt:
        if isinstance(part, AskedPart):
            scores = label_scores(lm, part, seen, batch_size)
            seen = [part.answered(dialogue, row) for dialogue, row in zip(seen, scores, strict=True)]
        else:
            seen = [part(dialogue) for dialogue in seen]
    return seen


def label_scores(
    lm: LanguageModel, part: AskedPart, dialogues: Sequence[Dialogue], batch_size: int = 16
) -> list[list[float]]:
    """Return the log-probability per token of each label as the model's reply, a list for each dialogue."""
    questions = [part.question(dialogue) for dialogue in dialogues]
    tokens = [lm.tokens(question, label) for question in questions for label in part.labels]
    lm.check_fit(tokens, 0)
    found: list[Tensor] = log_probs(lm, tokens, batch_size=batch_size)
    means, n = [float(row.mean()) for row in found], len(part.labels)
    return [means[i : i + n] for i in range(0, len(means), n)]
