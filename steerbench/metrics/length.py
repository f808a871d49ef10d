"""Response length, in words and in tokens of the language model: what diversity and many rewards depend on."""

from typing import Any

import datasets
import evaluate

from steerbench.metrics.per_example import PerExampleMetric, count_empty, summary
from steerbench.metrics.wording import length_in_words


class Length(PerExampleMetric):
    """`compute(predictions=responses)` -> `length` in words, `per_example`, `empty`.

    With `token_counts`, the number of generated ids of each response, also `length_in_tokens` and
    `tokens_per_example`.
    """

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="Length of each response in words and, if the counts are given, in tokens.",
            citation="",
            inputs_description="predictions: list of responses; token_counts: list of int, optional.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(  # type: ignore[override]
        self, *, predictions: list[str], token_counts: list[int] | None = None
    ) -> dict[str, Any]:
        result = {**summary("length", [length_in_words(p) for p in predictions]), "empty": count_empty(predictions)}
        if token_counts is not None:
            if len(token_counts) != len(predictions):
                raise ValueError(f"{len(token_counts)} token counts for {len(predictions)} responses")
            tokens = summary("length_in_tokens", token_counts)
            result |= {"length_in_tokens": tokens["length_in_tokens"], "tokens_per_example": tokens["per_example"]}
        return result
