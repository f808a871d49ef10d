"""URIAL: align a base model by showing it a few questions with good replies before the one that is asked.

Paper: Lin et al., "The Unlocking Spell on Base LLMs", ICLR 2024, arXiv 2312.01552.

    dialogue -> (what follows is a dialogue ..., K questions with replies, dialogue),   K = 3

The three show a style: one lists steps in order and closes kindly, one declines a request to do harm and says why, one
gives steps and warns of a danger. All are written for this benchmark.

Differences from the authors' prompts (Re-Align/URIAL @127f94e, `inst_1k_v4`, 1,000 tokens): shorter texts, ours; they
are earlier turns in the format that the model has anyway, plain `Human:` and `Assistant:` for a base model, where
theirs are blocks of `# Query:` and `# Answer:` in fences. The end of a reply is found by one function for all methods,
which knows turns and no fences, and a chat model gets no template inside of its template. No repetition penalty.

Defaults: K 3, or as many as take a third of what the context leaves beside new tokens; the report says how many. Cost:
nothing to fit; some 250 more tokens in front of each prompt, which are read once for all prompts of a call. On the
testbed, 64 prompts with 32 new tokens each, one thread on two busy cores, medians of three turns: 2.0 CPU seconds, and
2.7 where every prompt reads them, with one example, 2.9 and 4.4 with three; 6,900 tokens of prompts are read for
12,500, and 7,000 for 19,800. The responses are the same.

Pitfalls: for base models; a chat model has learned a style, and pays for another. The style is longer and refuses
more. On the testbed, whose model carries the manner of a reply over to the next, what is shown acts through that.

On the testbed (five seeds, 96 test prompts) it gains +2.19 of gold on HH-RLHF and +2.17 on SHP, at 0.05 nats per token
that nothing moves, as the best single instructions do, with one of the three examples: there is no room for more. How
much of that is the preamble alone, which is a system text, has not been measured.

Learns from: nothing. Touches: prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from steerbench import FitContext, Steerer, Steering
from steerbench.data import Turn
from steerbench.edits import Instruction, Shown
from steerbench.learn import Range

PREAMBLE = "What follows is a dialogue. The assistant is helpful, honest and polite, and declines what would do harm."
EXAMPLES = (
    (
        "How do I start to run regularly?",
        "Good idea! First, choose three days of the week. Then run slowly for ten minutes and walk for five. "
        "Add a minute each week. Rest when something hurts. I hope you enjoy it.",
    ),
    (
        "How can I read my neighbour's letters without her knowing?",
        "I am sorry, but I cannot help with that. Her letters are private, and opening them is against the law. "
        "If something worries you, talk to her.",
    ),
    (
        "How do I clean an oven?",
        "Happy to help. First, let it cool. Then spread baking soda and water inside, and wait for an hour. "
        "Wipe it out with a damp cloth. Be careful with oven sprays: wear gloves, and open a window.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Urial(Steerer):
    """Examples in the context.

    - `k`: how many questions with replies are shown, 0 to 3
    - `preamble`: whether the text in front of them is there
    """

    off: ClassVar[Mapping[str, Any]] = {"k": 0, "preamble": False}

    k: Annotated[int, Range(0, 3)] = 3
    preamble: bool = True

    def fit(self, context: FitContext) -> Steering:
        """Take as many examples as there is room for."""
        text = PREAMBLE if self.preamble else ""
        shown = max(n for n in range(self.k + 1) if n == 0 or self._fits(context, text, n))
        context.report["shown"] = shown
        questions, replies = [q for q, _ in EXAMPLES[:shown]], [r for _, r in EXAMPLES[:shown]]
        return Steering(prompt=(Instruction(text), Shown(questions, replies)))

    def _fits(self, context: FitContext, text: str, n: int) -> bool:
        """Tell whether n examples leave two thirds of the room to the dialogue."""
        room = (context.lm.context_length - context.decoding.max_new_tokens) // 3
        turns = tuple(turn for q, r in EXAMPLES[:n] for turn in (Turn("user", q), Turn("assistant", r)))
        dialogue = (*((Turn("system", text),) if text else ()), *turns, Turn("user", ""))
        return len(context.lm.tokens(dialogue).prompt) <= room
