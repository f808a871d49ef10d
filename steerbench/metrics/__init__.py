"""Metrics as `evaluate` modules. Each also offers its value per example as a plain function."""

from steerbench.metrics.average_reward import AverageReward
from steerbench.metrics.coherence import Coherence, coherence_of
from steerbench.metrics.diversity import Diversity, diversity_of
from steerbench.metrics.length import Length, length_in_words
from steerbench.metrics.win_rate import WinRate
from steerbench.records.comparisons import wins

__all__ = [
    "AverageReward",
    "Coherence",
    "Diversity",
    "Length",
    "WinRate",
    "coherence_of",
    "diversity_of",
    "length_in_words",
    "wins",
]
