"""Small records, for the tests of what is done with records."""

from typing import Any

import pandas as pd

from steerbench import Record


def make(method: str = "caa", seed: int = 0, **protocol: Any) -> Record:
    """Return a small record of a protocol with two seeds."""
    key = {"task": "shp", "n_examples": 20, "model": "sha256:a", "seeds": [0, 1], "temperature": 0.0, **protocol}
    ids = [f"p{i:02d}" for i in range(20)]
    reward = {"unsteered": 0.5, "caa": 1.5}.get(method, 1.0) + seed
    return Record(
        method=method,
        parts=[{"name": method, "hyperparameters": {"strength": 1.0}, "source": "s"}],
        protocol=key,
        seed=seed,
        steerbench="0.1.0",
        labels={"task": key["task"], "model": "m", "reward_model": "r", "held_out_reward": "", "encoder": "e"},
        metrics={"reward": reward, "win_rate": 0.5},
        latency={"decode_ratio": 1.1},
        counts={"empty reply": 1},
        truncated=0,
        environment={"device": "cpu"},
        seconds={"fit": 1.0},
        steering="d",
        report={"seeded": False},
        created="2026-01-01T00:00:00+00:00",
        examples=pd.DataFrame({"id": ids, "group": ids, "reward": reward}),
    )
