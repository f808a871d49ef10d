"""Score the responses of one method: every metric, per test prompt."""

from collections.abc import Sequence
from math import exp

import pandas as pd

from steerbench.bench.setup import Bench
from steerbench.data.dialogue import plain_text
from steerbench.data.task import Example
from steerbench.engine.effect import Effect
from steerbench.metrics import coherence_of, diversity_of, wins
from steerbench.metrics.per_token import over_tokens
from steerbench.models.response import Response
from steerbench.models.reward import Reward
from steerbench.records.record import METRICS
from steerbench.testbed.gold import gold


def score(bench: Bench, responses: Sequence[Response], found: Effect, unsteered: pd.DataFrame | None) -> pd.DataFrame:
    """Return one row per response, in order: texts, scores, and the scores they are compared with.

    `unsteered` is the table of the unsteered model; None for that model itself, which is its own baseline.
    """
    examples = bench.test_examples
    prompts = [e.prompt for e in examples]
    texts = [r.text for r in responses]
    table = pd.DataFrame(
        {
            "id": [e.id for e in examples],
            "group": [e.group for e in examples],
            "sample": [i // len(bench.test) for i in range(len(examples))],
            "prompt": [plain_text(p) for p in prompts],
            "response": texts,
            "finish": [r.finish for r in responses],
            "length": [float(r.n_tokens) for r in responses],
            "truncated": [float(r.finish == "length") for r in responses],
            "empty": [float(not text.strip()) for text in texts],
            "diversity": [diversity_of(text) for text in texts],
            "coherence": coherence_of(bench.encoder, [plain_text(p) for p in prompts], texts, bench.options.progress),
            "tokens": [len(r.ids) for r in responses],
            "kl": found.kl,
            "nll": found.nll,
        }
    )
    _add_reward(bench, table, unsteered, bench.reward, "reward", "win_rate")
    table["worse"] = (table["win_rate"] == 0).astype(float)
    if bench.held_out:
        _add_reward(bench, table, unsteered, bench.held_out, "held_out_reward", "held_out_win_rate")
    if bench.has_gold:
        table["gold"] = [gold(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    return table


def _add_reward(
    bench: Bench, table: pd.DataFrame, unsteered: pd.DataFrame | None, reward: Reward, column: str, win: str
) -> None:
    """Add a reward, and the wins by it against the unsteered response and the preferred reply."""
    scores = _rewards(bench, reward, bench.test_examples, list(table["response"]))
    if ("preferred", column) not in bench.shared:
        bench.shared["preferred", column] = _rewards(bench, reward, bench.test, [e.chosen for e in bench.test])
    table[column] = scores
    table[win] = wins(scores, scores if unsteered is None else list(unsteered[column]))
    table[f"{win}_preferred"] = wins(scores, bench.shared["preferred", column] * bench.protocol.n_samples)


def _rewards(bench: Bench, reward: Reward, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    values: list[float] = reward.score([e.prompt for e in examples], texts, bench.options.progress).tolist()
    return values


def means(table: pd.DataFrame) -> dict[str, float]:
    """Return every metric that is there: means over responses; KL and perplexity over their tokens."""
    found = {name: float(table[name].mean()) for name in METRICS if name in table and name != "kl"}
    per_token = over_tokens({"kl": table["kl"], "nll": table["nll"]}, table["tokens"])
    perplexity = {"perplexity": exp(per_token.pop("nll"))} if "nll" in per_token else {}
    return {**found, **per_token, **perplexity}
