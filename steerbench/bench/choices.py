"""Score a task's choices under a steering: the log-likelihood of each answer as a reply to the prompt."""

from collections.abc import Sequence
from statistics import fmean

import pandas as pd

from steerbench.bench.setup import Bench
from steerbench.data.task import Example
from steerbench.engine.logits import log_probs
from steerbench.metrics.choice_likelihood import likeliest_is_right, share_of_right
from steerbench.models.language_model import LanguageModel
from steerbench.models.reward import Reward
from steerbench.steering.steering import Steering

SCORES = {"mc1": likeliest_is_right, "mc2": share_of_right, "accuracy": likeliest_is_right}
"""By the name of the choices."""


def choice_log_likelihoods(
    lm: LanguageModel,
    examples: Sequence[Example],
    steering: Steering = Steering(),
    *,
    batch_size: int = 16,
    reward: Reward | None = None,
) -> list[list[list[float]]]:
    """Return for each example and each of its choices the log-likelihoods of the answers, sums over their tokens.

    The steering's prompt part is applied, and its edits and logits parts act as in generation; an answer that stands
    among several choices is read once. Raises SteerbenchError for a steering that chooses among candidates.
    """
    asked = list(dict.fromkeys((i, t) for i, e in enumerate(examples) for c in e.choices for t in c.texts))
    tokens = [lm.tokens(steering.apply_prompt(examples[i].prompt), text) for i, text in asked]
    dialogues = [examples[i].prompt for i, _ in asked]
    found = log_probs(lm, tokens, steering, batch_size=batch_size, dialogues=dialogues, reward=reward)
    sums = {key: float(values.double().sum()) for key, values in zip(asked, found, strict=True)}
    return [[[sums[i, text] for text in c.texts] for c in e.choices] for i, e in enumerate(examples)]


def choice_scores(
    examples: Sequence[Example], likelihoods: Sequence[Sequence[Sequence[float]]]
) -> dict[str, list[float]]:
    """Return by the name of the choices a score for each example; all have the same choices."""
    found: dict[str, list[float]] = {choices.name: [] for example in examples for choices in example.choices}
    for example, of_example in zip(examples, likelihoods, strict=True):
        for choices, values in zip(example.choices, of_example, strict=True):
            found[choices.name].append(SCORES[choices.name](values, choices.right))
    return found


def add_choices(bench: Bench, table: pd.DataFrame, steering: Steering) -> dict[str, float]:
    """Add a column for each of the task's choices to the scores of a record, and return their means.

    Nothing is added where the task has none, or where the steering chooses among candidates: that gives no probability
    to an answer.
    """
    if steering.decode is not None or not any(e.choices for e in bench.test):
        return {}
    size = bench.options.batch_size
    likelihoods = choice_log_likelihoods(bench.lm, bench.test, steering, batch_size=size, reward=bench.reward)
    found = choice_scores(bench.test, likelihoods)
    for name, values in found.items():
        table[name] = values * bench.protocol.n_samples
    return {name: fmean(values) for name, values in found.items()}
