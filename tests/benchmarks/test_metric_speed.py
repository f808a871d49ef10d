"""Throughput of the metrics and intervals, on as many responses as a run has."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerbench.metrics import coherence_of, diversity_of, wins
from steerbench.models.encoder import SentenceEncoder
from steerbench.records.statistics import paired_interval

PROMPTS = 256
WORDS = ("bread", "soup", "kite", "garden", "poem", "make", "plan", "repair", "slowly", "never,", "well.", "and", "the")


def texts(count: int, words: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=words)) for _ in range(count)]


def number(benchmark: Any) -> int:
    """Return how many responses to take: few where nothing is timed."""
    return PROMPTS if benchmark.enabled else 4


def test_diversity(benchmark: Any) -> None:
    responses = texts(number(benchmark), 128)
    values = benchmark(lambda: [diversity_of(text) for text in responses])
    assert all(0 < value < 1 for value in values)


def test_coherence_with_the_tiny_encoder(benchmark: Any, world: Path) -> None:
    encoder = SentenceEncoder.load(str(world / "encoder"))
    prompts = texts(number(benchmark), 12)
    assert benchmark(coherence_of, encoder, prompts, prompts) == pytest.approx([1.0] * len(prompts))


def test_win_rate(benchmark: Any) -> None:
    count = 100_000 if benchmark.enabled else 100
    scores = np.random.default_rng(0).normal(size=(2, count)).tolist()
    assert 0.3 < np.mean(benchmark(wins, *scores)) < 0.7


@pytest.mark.parametrize("seeds", [1, 3])
def test_paired_interval(benchmark: Any, seeds: int) -> None:
    """10,000 resamples of clusters with two prompts each."""
    count = number(benchmark)
    draw = np.random.default_rng(0)
    ids, groups = [f"{i:03}" for i in range(count)], [str(i // 2) for i in range(count)]

    def table(gain: float) -> pd.DataFrame:
        return pd.DataFrame({"id": ids, "group": groups, "reward": draw.normal(gain, size=count)})

    steered, unsteered = ([table(gain) for _ in range(seeds)] for gain in (5.0, 0.0))
    found = benchmark(paired_interval, steered, unsteered, "reward")
    assert found.low is not None
    assert 0 < found.low <= found.mean <= found.high
