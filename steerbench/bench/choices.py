"""Score a task's choices under a steering: the log-likelihood of each answer as a reply to the prompt."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, TypeAlias

import pandas as pd

from steerbench.bench.setup import Bench
from steerbench.data.task import Choices, Example
from steerbench.engine.kept_prompts import KeptPrompts
from steerbench.engine.logits import log_probs
from steerbench.errors import SteerbenchError
from steerbench.metrics.choice_likelihood import likeliest_is_right, log_odds_of_right, share_of_right
from steerbench.models.language_model import LanguageModel
from steerbench.models.reward import Reward
from steerbench.progress import Progress, silent
from steerbench.steering.steering import Steering

Score: TypeAlias = Callable[[Sequence[float], Sequence[bool]], float]

SCORES: dict[str, dict[str, Score]] = {
    "mc1": {"mc1": likeliest_is_right},
    "mc2": {"mc2": share_of_right},
    "accuracy": {"accuracy": likeliest_is_right},
    "matching": {"matching": share_of_right, "matching_log_odds": log_odds_of_right},
}
"""By the name of the choices, what is worked out of them, by column; the first is what the choices are for."""


def choice_log_likelihoods(
    lm: LanguageModel,
    examples: Sequence[Example],
    steering: Steering = Steering(),
    *,
    batch_size: int = 16,
    reward: Reward | None = None,
    kept: KeptPrompts | None = None,
    progress: Progress = silent,
) -> list[list[list[float]]]:
    """Return for each example and each of its choices the log-likelihoods of the answers, sums over their tokens.

    The steering's prompt part is applied, and its edits and logits parts act as in generation; an answer that stands
    among several choices for one prompt is read once; `kept` as in `log_probs`. Raises SteerbenchError for a steering
    that chooses among candidates.
    """
    asked = list(dict.fromkeys((c.prompt or e.prompt, t) for e in examples for c in e.choices for t in c.texts))
    tokens = [lm.tokens(steering.apply_prompt(prompt), text) for prompt, text in asked]
    dialogues = [prompt for prompt, _ in asked]
    found = log_probs(
        lm,
        tokens,
        steering,
        batch_size=batch_size,
        dialogues=dialogues,
        reward=reward,
        kept=kept,
        progress=progress,
    )
    sums = {key: float(values.double().sum()) for key, values in zip(asked, found, strict=True)}
    return [[[sums[c.prompt or e.prompt, text] for text in c.texts] for c in e.choices] for e in examples]


def choice_scores(
    examples: Sequence[Example], likelihoods: Sequence[Sequence[Sequence[float]]]
) -> dict[str, list[float]]:
    """Return by column a score for each example; all have the same choices. Those of one name are averaged."""
    for example in examples:
        _check_known(example.choices)
    columns = {column: c.name for example in examples for c in example.choices for column in SCORES[c.name]}
    return {
        column: [
            fmean(
                SCORES[name][column](values, c.right)
                for c, values in zip(example.choices, of_example, strict=True)
                if c.name == name
            )
            for example, of_example in zip(examples, likelihoods, strict=True)
        ]
        for column, name in columns.items()
    }


def _check_known(choices: Sequence[Choices]) -> None:
    for one in choices:
        if one.name not in SCORES:
            raise SteerbenchError(f"a task's choices are named {one.name!r}; give one of {', '.join(SCORES)}.")
        if any(not text for text in one.texts) or len(set(one.right)) < 2 or len(one.right) != len(one.texts):
            raise SteerbenchError(
                f"the choices {one.name!r} of a task are {one.texts!r}; each needs a text, and a right one and a wrong "
                f"one must be among them. Its parse must raise Unusable where a row has others."
            )


def add_choices(bench: Bench, table: pd.DataFrame, steering: Steering) -> dict[str, float]:
    """Add a column for each score of the task's choices to the scores of a record, and return their means.

    Nothing is added where the task has none, or where the steering chooses among candidates: that gives no probability
    to an answer.
    """
    if steering.decode is not None or not any(e.choices for e in bench.test):
        return {}
    found = _scored(bench, bench.test, steering, bench.kept)
    for name, values in found.items():
        table[name] = values * bench.protocol.n_samples
    return {name: fmean(values) for name, values in found.items()}


def capability(bench: Bench, steering: Steering) -> dict[str, Any]:
    """Return what a record keeps of the capability check: the score of each question, in the order of the protocol's.

    Empty where the protocol asks for none, or where the steering chooses among candidates.
    """
    if steering.decode is not None or not bench.capability:
        return {}
    name = bench.capability[0].choices[0].name
    scores = _scored(bench, bench.capability, steering, bench.kept_questions)[next(iter(SCORES[name]))]
    return {"task": bench.key["capability"]["task"], "score": name, "mean": fmean(scores), "scores": scores}


def _scored(bench: Bench, examples: Sequence[Example], steering: Steering, kept: KeptPrompts) -> dict[str, list[float]]:
    likelihoods = choice_log_likelihoods(
        bench.lm,
        examples,
        steering,
        batch_size=bench.batch_size,
        reward=bench.reward,
        kept=kept,
        progress=bench.options.progress,
    )
    return choice_scores(examples, likelihoods)
