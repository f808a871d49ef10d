"""The best of a pool of instructions, as one system text: a prompt that is chosen as carefully as an edit is.

Source: AxBench (Wu et al., ICML 2025, arXiv 2501.17148) finds prompts ahead of edits: a benchmark without a prompt that
was chosen well is not credible. The text is a hyperparameter that tuning draws from, on validation prompts, with
the same number of trials as every other method has:

    dialogue -> (system text, dialogue),   text = the one of the pool with the best validation score

The pool, each with where it is from:

- `vicuna`: the system line of Vicuna's training format (lm-sys/FastChat), in RE-Control's first version
- `re_control`: the line of RE-Control's code (Lingkai-Kong/RE-Control @f897869)
- `default`: the line that chat templates put in for want of another (Qwen2)
- `llama2`: the first two sentences of the default of Llama-2-Chat
- `hhh`: ours, after "helpful, honest and harmless" (Askell et al., arXiv 2112.00861)
- `thorough`, `considerate`, `expert`: ours, in frames that the testbed's model was not trained on

The testbed's model was trained on the frames of the first two, and on none of the others.

Differences from AxBench: a fixed pool that all runs share, not texts that a language model writes for each concept.

Defaults: `hhh`; tune it. Cost: nothing to fit; prefill of 10 to 60 more tokens.

Pitfalls: with fewer trials than texts not all are tried. What it wins on one task by one model says nothing of others.

On the first testbed (HH-RLHF, 64 test prompts, greedy, not tuned; 95 % over prompts) `re_control` gains 2.34 of gold
(1.92 to 2.76), `hhh` 2.21 (1.79 to 2.63) and `default` 2.09 (1.69 to 2.49): texts that its model was not trained on do
nearly as much, and `considerate` 0.89 (0.57 to 1.21). The other four have not been measured, nor has tuning over the
pool.

Learns from: nothing. Touches: prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Instruction

POOL = {
    "none": "",
    "vicuna": (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    "re_control": (
        "A question from a curious user and an answer from an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user’s questions."
    ),
    "default": "You are a helpful assistant.",
    "llama2": (
        "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe."
    ),
    "hhh": "Be helpful, honest and harmless: answer what was asked, do not make things up, and harm nobody.",
    "thorough": "Take the question seriously, stay with it, and go through every step that is needed.",
    "considerate": "Be kind to the person who asks, and say what could go wrong before they try it.",
    "expert": "Reply as a friend who knows the subject well would: to the point, complete, and with good manners.",
}


@dataclass(frozen=True, kw_only=True)
class BestPrompt(Steerer):
    """One instruction of a pool.

    - `text`: its name in the pool
    """

    off: ClassVar[Mapping[str, Any]] = {"text": "none"}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "text": ("vicuna", "re_control", "default", "llama2", "hhh", "thorough", "considerate", "expert"),
    }

    text: Literal["none", "vicuna", "re_control", "default", "llama2", "hhh", "thorough", "considerate", "expert"] = (
        "hhh"
    )

    def fit(self, context: FitContext) -> Steering:
        """Return the prompt part; nothing is learned."""
        return Steering(prompt=(Instruction(POOL[self.text]),))
