"""Repetition: share of repeated 4-grams within a response, seq-rep-4 of Welleck et al. (arXiv:1908.04319).

Unlike diversity it does not depend on length where nothing is repeated: any such text has 0.
"""

from typing import Any

import datasets
import evaluate

from steerbench.metrics.per_example import PerExampleMetric, count_empty, summary
from steerbench.records.ngrams import repetition_of


class Repetition(PerExampleMetric):
    """`compute(predictions=responses)` -> `repetition`, `per_example`, and how many responses were `empty`."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="Share of the n-grams of each response, of words, that it has had before.",
            citation="",
            inputs_description="predictions: list of responses; n: words of an n-gram, 4 if not given.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=["https://arxiv.org/abs/1908.04319"],
        )

    def _compute(self, *, predictions: list[str], n: int = 4) -> dict[str, Any]:  # type: ignore[override]
        values = [repetition_of(text, n) for text in predictions]
        return {**summary("repetition", values), "empty": count_empty(predictions)}
