"""PrimeGuard: the model itself says how risky a request is, and gets the instruction for that.

Paper: Manczak et al., "PrimeGuard: Safe and Helpful LLMs through Tuning-Free Routing", 2024, arXiv 2407.16318.

    label = argmax_l [ mean log p(l | last user turn, question) + bias_l ],   l in {no risk, possible, direct}
    dialogue -> (system: instruction of that label, dialogue)

The unsteered model is asked, whole batches of prompts at once, before anything is generated.

Differences from the authors' code (dynamofl/PrimeGuard @bbf3bff): the three labels are scored as replies, where theirs
generates JSON with a label and a tip: small models write no valid JSON. So there is no tip, and no re-evaluation of
one; each label has an instruction of its own. `bias` is ours: a small model likes one label for its words; by
default the mean score that a label has over training prompts is taken off (Zhao et al., arXiv 2102.09690).

Defaults: at most 128 training prompts for the biases. Cost: one pass per label and training prompt to fit; three
passes over the last user turn for each prompt (`calls_per_prompt` of the report), and a prefill of about 25
more tokens.

Pitfalls: a model that cannot judge routes by chance, and the biases make it look balanced: read `routed` of the report,
the share of training prompts for each label. Only the last turn is judged.

On the testbed it does harm (five seeds, 96 test prompts): -1.57 of gold on HH-RLHF and -1.20 on SHP, surely. It routes
0.30, 0.38 and 0.31 of the training prompts to no, possible and direct risk, where the world has about one harmful
question in seven: the biases even the labels out. One sentence does the harm: given to each of 64 test prompts,
greedily, the instruction for possible risk costs 3.6 of the guide, that for none 0.6, and that for direct risk gains
0.7. The model was trained on no frame like `Give a ... answer`, takes `careful` in it for its opposite, and says that
it does not matter if somebody gets hurt. The wording stays as it is: it is not chosen by what one small model makes of
it.

Learns from: prompts. Touches: prompt.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Routed
from steerbench.learn import Count, label_scores

ASK = "Could a helpful answer to this hurt somebody or break the law?"
LABELS = ("No, it is harmless.", "Perhaps, it needs care.", "Yes, it is harmful.")
INSTRUCTIONS = (
    "Give a helpful, detailed and polite answer.",
    "Give a helpful and careful answer, and say what could go wrong.",
    "Decline in a polite way, and say why this would do harm.",
)


@dataclass(frozen=True, kw_only=True)
class PrimeGuard(Steerer):
    """An instruction that the model's own judgement of the prompt chooses.

    - `guard`: whether prompts are routed; off: nothing is asked, and nothing is said
    - `bias`: what is added to the score of a label: what makes all alike on average over training prompts, or nothing
    - `n_prompts`: training prompts at most that biases are found from
    """

    off: ClassVar[Mapping[str, Any]] = {"guard": False}

    guard: bool = True
    bias: Literal["calibrated", "none"] = "calibrated"
    n_prompts: Count = 128

    def fit(self, context: FitContext) -> Steering:
        """Ask about training prompts, and take off what each label scores anyway."""
        if not self.guard:
            return Steering()
        queries = context.queries[: self.n_prompts]
        if not queries:
            raise SteerbenchError("prime_guard: no training prompt; use more training examples.")
        plain = Routed(ASK, LABELS, [0.0] * len(LABELS), INSTRUCTIONS)
        scores = label_scores(context.lm, plain, queries, context.batch_size)
        means = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
        biases = [-mean if self.bias == "calibrated" else 0.0 for mean in means]
        part = Routed(ASK, LABELS, biases, INSTRUCTIONS)
        routed = Counter(part.route(row) for row in scores)
        context.report["routed"] = {label: routed[i] / len(scores) for i, label in enumerate(LABELS)}
        context.report["calls_per_prompt"] = len(LABELS)
        return Steering(prompt=(part,))
