"""Metrics as `evaluate` modules. The value of each example is also a plain function, which needs no `evaluate`."""

from typing import TYPE_CHECKING

from steerbench.lazy_names import lazily

if TYPE_CHECKING:
    from steerbench.metrics.average_reward import AverageReward as AverageReward
    from steerbench.metrics.coherence import Coherence as Coherence
    from steerbench.metrics.diversity import Diversity as Diversity
    from steerbench.metrics.length import Length as Length
    from steerbench.metrics.refusal import refuses as refuses
    from steerbench.metrics.relevance import coherence_of as coherence_of
    from steerbench.metrics.repeated_ngrams import Repetition as Repetition
    from steerbench.metrics.win_rate import WinRate as WinRate
    from steerbench.metrics.wording import diversity_of as diversity_of
    from steerbench.metrics.wording import length_in_words as length_in_words
    from steerbench.records.comparisons import wins as wins
    from steerbench.records.ngrams import repetition_of as repetition_of

__getattr__, __dir__ = lazily(__name__, __file__)
