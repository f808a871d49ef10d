"""Diversity: how little a response repeats itself; see `steerbench.metrics.wording` for what is counted."""

from typing import Any

import datasets
import evaluate

from steerbench.metrics.per_example import PerExampleMetric, count_empty, summary
from steerbench.metrics.wording import diversity_of


class Diversity(PerExampleMetric):
    """`compute(predictions=responses)` -> `diversity`, `per_example`, and how many responses were `empty`."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="Product of the distinct n-gram ratios, n = 2 to 4, of each response.",
            citation="",
            inputs_description="predictions: list of responses.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=["https://github.com/deeplearning-wisc/args"],
        )

    def _compute(self, *, predictions: list[str]) -> dict[str, Any]:  # type: ignore[override]
        return {**summary("diversity", [diversity_of(p) for p in predictions]), "empty": count_empty(predictions)}
