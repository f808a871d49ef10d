"""Coherence: cosine of the sentence embeddings of prompt and response; see `steerbench.metrics.relevance`."""

from typing import Any

import datasets
import evaluate

from steerbench.metrics.per_example import PerExampleMetric, count_empty, summary
from steerbench.metrics.relevance import coherence_of
from steerbench.models.encoder import SentenceEncoder


class Coherence(PerExampleMetric):
    """`compute(predictions=responses, references=prompts, encoder=...)` -> `coherence`, `per_example`, `empty`."""

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Cosine of the sentence embeddings of prompt and response.",
            citation="",
            inputs_description="predictions: list of responses; references: list of prompts as text, role tags "
            "included; encoder: a steerbench.encoder.SentenceEncoder.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(  # type: ignore[override]
        self, *, predictions: list[str], references: list[str], encoder: SentenceEncoder
    ) -> dict[str, Any]:
        values = coherence_of(encoder, references, predictions)
        return {**summary("coherence", values), "empty": count_empty(predictions)}
