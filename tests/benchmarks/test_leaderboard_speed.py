"""What a leaderboard of very many methods costs: pairs of methods are many, and must not be slow."""

from typing import Any

import numpy as np

from steerbench.records.ranks import ranks_of
from steerbench.records.statistics import Gaps

N_PROMPTS = 64


def test_ranks_of_120_methods(benchmark: Any) -> None:
    generator = np.random.default_rng(0)
    ids = [f"p{i}" for i in range(N_PROMPTS)]
    rows = generator.normal(0, 0.5, (120, 1)) + generator.normal(0, 0.7, (120, N_PROMPTS))
    ranks = benchmark.pedantic(
        ranks_of, ({f"m{i}": Gaps(ids, ids, row, row[None, :1]) for i, row in enumerate(rows)},), rounds=3
    )
    best, worst = int(rows.mean(axis=1).argmax()), int(rows.mean(axis=1).argmin())
    assert ranks[f"m{best}"] == 1
    assert ranks[f"m{worst}"] > 60
