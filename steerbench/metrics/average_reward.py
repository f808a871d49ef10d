"""Average reward: mean score of the responses by a reward model, the guiding or the held-out one.

`evaluate.load(path, "held_out_reward")`, or `AverageReward("held_out_reward")`, gives the result that name.
"""

from typing import Any

import datasets
import evaluate

from steerbench.data.dialogue import Dialogue, parse_hh, user
from steerbench.metrics.per_example import PerExampleMetric, count_empty, summary
from steerbench.models.reward import Reward


def as_dialogue(prompt: str) -> Dialogue:
    """Read a prompt: HH-RLHF text, with or without the open `Assistant:` at its end, else one user turn."""
    if not prompt.lstrip().startswith("Human:"):
        return user(prompt)
    turns = parse_hh(prompt.strip())
    return turns[:-1] if turns[-1] == ("assistant", "") else turns


class AverageReward(PerExampleMetric):
    """`compute(predictions=responses, references=prompts, reward=...)` -> `reward`, `per_example`, `empty`."""

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Score of each response by a reward model. Empty responses are scored like any other.",
            citation="",
            inputs_description="predictions: list of responses; references: list of prompts, HH-RLHF text or one user "
            "turn each; reward: a steerbench.reward.Reward.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(  # type: ignore[override]
        self, *, predictions: list[str], references: list[str], reward: Reward
    ) -> dict[str, Any]:
        name = "reward" if self.config_name == "default" else self.config_name
        values = reward.score([as_dialogue(r) for r in references], predictions).tolist()
        return {**summary(name, values), "empty": count_empty(predictions)}
