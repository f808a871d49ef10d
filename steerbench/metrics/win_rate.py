"""Win rate: share of prompts on which a response scores above its baseline; a tie is half a win.

The baseline is another response to the same prompt: the unsteered model's, or the preferred reply of the data set.
RE-Control's published win rate has a GPT-4 judge for the scores and counts ties as lost.
"""

from typing import Any

import datasets
import evaluate

from steerbench.metrics.per_example import PerExampleMetric, summary
from steerbench.records.comparisons import wins
from steerbench.records.statistics import TOLERANCE


class WinRate(PerExampleMetric):
    """`compute(predictions=scores, references=baseline scores)` -> `win_rate`, `per_example`."""

    def _info(self) -> Any:
        score = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="Share of examples whose score is above the baseline's; ties count one half.",
            citation="",
            inputs_description="predictions: scores of the responses; references: scores of the baseline responses to "
            "the same prompts; tolerance: largest difference that is a tie, 1e-4 if not given.",
            features=datasets.Features({"predictions": score, "references": score}),
        )

    def _compute(  # type: ignore[override]
        self, *, predictions: list[float], references: list[float], tolerance: float = TOLERANCE
    ) -> dict[str, Any]:
        return summary("win_rate", wins(predictions, references, tolerance))
