"""A large study of made-up records, as `steerbench run` writes them: what reading, ranking and reporting cost.

Numbers are drawn, texts are of words, and every column, label and trial of a real record is there.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from steerbench import Record, Store

WORDS = ("bread", "soup", "kite", "garden", "poem", "make", "plan", "repair", "slowly", "never,", "well.", "and", "the")
PROMPT_WORDS, RESPONSE_WORDS = 60, 45
STRENGTHS = (0.1, 0.2, 0.4, 0.8)
"""Every second method is tuned, and of the others four have one name each: a sweep of their strength."""
TRIALS = 8


class Study(NamedTuple):
    """How large a study is. Method 0 is the unsteered model."""

    methods: int
    tasks: int = 1
    seeds: int = 1
    prompts: int = 64

    @property
    def n_records(self) -> int:
        return self.methods * self.tasks * self.seeds


def write(study: Study, folder: Path) -> None:
    store = Store(folder)
    store.prepare()
    for record in records(study):
        store.write(record)


def records(study: Study) -> Iterator[Record]:
    for task in range(study.tasks):
        draw = np.random.default_rng(task)
        prompts = [_text(draw, PROMPT_WORDS) for _ in range(study.prompts)]
        plain = _scores(draw, study.prompts)
        for method in range(study.methods):
            lift, own = draw.normal(0, 0.4), draw.normal(0, 0.4, study.prompts)
            gains = np.zeros(study.prompts) if method == 0 else lift + own
            for seed in range(study.seeds):
                yield _record(study, (task, method, seed), _table(draw, prompts, plain, gains))


def _text(draw: np.random.Generator, words: int) -> str:
    return " ".join(draw.choice(WORDS, words))


def _scores(draw: np.random.Generator, n: int) -> dict[str, Any]:
    return {name: draw.normal(0, 1, n) for name in ("reward", "held_out_reward", "gold")}


def _table(draw: np.random.Generator, prompts: list[str], plain: dict[str, Any], gains: Any) -> pd.DataFrame:
    """Return the examples of a record: scores that lie `gains`, and noise, above those of the unsteered model."""
    n, noise = len(prompts), draw.normal(0, 0.3, len(prompts))
    tokens = draw.integers(20, 100, n)
    return pd.DataFrame(
        {
            "id": [f"{i:016x}" for i in range(n)],
            "group": [f"about {i}" for i in range(n)],
            "sample": 0,
            "prompt": prompts,
            "response": [_text(draw, RESPONSE_WORDS) for _ in prompts],
            "finish": "end",
            "length": tokens.astype(float) - 1,
            "truncated": 0.0,
            "empty": 0.0,
            **{name: draw.uniform(0, 1, n) for name in ("diversity", "repetition", "coherence")},
            "tokens": tokens,
            **{name: draw.uniform(0, 1, n) for name in ("kl", "nll")},
            "reward": plain["reward"] + gains + noise,
            "preferred_reward": plain["reward"] + 1,
            "held_out_reward": plain["held_out_reward"] + gains / 2 + noise,
            "preferred_held_out_reward": plain["held_out_reward"] + 1,
            "gold": np.round(plain["gold"] - gains),
        }
    )


def _record(study: Study, numbers: tuple[int, int, int], examples: pd.DataFrame) -> Record:
    task, method, seed = numbers
    tuned = method % 2 == 0
    name, strength = f"method{method if tuned else method // 8 * 8 + 1}", STRENGTHS[method // 2 % 4]
    part = {"name": name, "hyperparameters": {"strength": strength, "layer": None, "pool": "mean"}, "source": "s" * 64}
    metrics = {column: float(examples[column].mean()) for column in ("reward", "held_out_reward", "gold", "diversity")}
    timed = {"prefill_ms": 13.0, "decode_ms_per_token": 3.8, "tokens_per_s": 240.0, "peak_memory_mb": 900.0}
    # what learns from no rollouts has one steering for all seeds
    fitted = 0 if method % 4 == 0 else seed
    return Record(
        method="unsteered" if method == 0 else name if tuned else f"{name}:strength={strength:g}",
        parts=[{**part, "name": "unsteered", "hyperparameters": {}} if method == 0 else part],
        protocol=_protocol(study, task),
        seed=seed,
        steerbench="0.1.0",
        labels={
            "task": f"made-{task}",
            "model": "testbed/lm",
            "reward_model": "testbed/reward",
            "held_out_reward": "testbed/held_out_reward",
            "encoder": "testbed/encoder",
        },
        metrics={**metrics, "coherence": 0.9, "length": 50.0, "kl": 0.01 * method, "perplexity": 1.5},
        latency={**timed, "unsteered": timed, "prefill_ratio": 1.0, "decode_ratio": 1.0, "device": "cpu"},
        counts={"empty reply": 1},
        truncated=0,
        environment={"batch_size": 32, "device": "cpu", "threads": 1, "python": "3.11.7", "torch": "2.13.0"},
        seconds={"tune": 10.0, "fit": 1.0, "generate": 3.0, "score": 1.0},
        steering=f"{method}-{fitted}",
        created=f"2026-01-01T00:00:{seed % 60:02}+00:00",
        tuning=_tuning(method, strength) if tuned and method else {},
        report={"seeded": method % 4 != 0, "fit": {"layer": 3}, "effect": {"relative_norm": 0.1}},
        examples=examples,
    )


def _protocol(study: Study, task: int) -> dict[str, Any]:
    models = {name: "sha256:" + name[0] * 64 for name in ("model", "reward_model", "held_out_reward", "encoder")}
    drawn = {"max_new_tokens": 128, "temperature": 0.0, "top_k": 0, "top_p": 1.0}
    sizes = {"n_examples": study.prompts, "n_samples": 1, "n_train": 512, "n_validation": 64}
    seeds = list(range(study.seeds))
    return {"task": f"made-{task}", **sizes, **models, **drawn, "dtype": "float32", "tuning_budget": 8, "seeds": seeds}


def _tuning(method: int, chosen: float) -> dict[str, Any]:
    strengths = [chosen * (1 + i) for i in range(TRIALS)]
    trials = [
        {
            "hyperparameters": {"strength": s},
            "score": s,
            "reward": s,
            "diversity": 0.8,
            "coherence": 0.9,
            "length": 50.0,
        }
        for s in strengths
    ]
    return {
        "objective": "reward",
        "split": "validation",
        "n": 64,
        "trials": trials,
        "chosen": {"strength": chosen},
        "searched": {"strength": strengths},
        "unsteered": {"reward": 0.01 * method, "diversity": 0.8},
    }
