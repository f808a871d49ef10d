"""What a reward of whole replies and a value function know of a reply's beginning (arXiv:2406.07780).

python results/rewards_of_beginnings.py [TESTBED], another one as `steerbench testbed build` made it

The unsteered model writes several replies to each test prompt. Which of two replies to one prompt will have the higher
guiding reward in the end? Asked of their first tokens alone: the reward, to which a beginning is a reply that breaks
off, and the value function of `re_control` and `controlled_decoding`, trained on replies to other prompts. Told is the
share of pairs in the right order, 0.5 for guesses, with 95 % intervals over prompts.
"""

import sys
from functools import partial
from itertools import combinations

import numpy as np
import torch

from steerbench import Decoding, FitContext, LanguageModel, load
from steerbench.data import load_data
from steerbench.edits import Site
from steerbench.learn import Training, ValueFunction, rollout_value
from steerbench.models.language_model import Tokens
from steerbench.models.reward import RewardModel
from steerbench.testbed import Testbed, named

PROMPTS, REPLIES, TRAIN = 96, 6, 512
LENGTHS = (2, 4, 8, 16, 32)
TRAINING = Training(layers=3, hidden=None, lr=1e-4, batch_size=16, td_lambda=0.95)
"""As in `re_control`."""


def beginnings(context: FitContext, length: int, value: ValueFunction) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the reward and the value of the first tokens of each reply, (replies,) both."""
    rollouts = context.rollouts()
    read = [Tokens(one.tokens.prompt, one.tokens.response[:length]) for one in rollouts]
    texts = [context.lm.tokenizer.decode(tokens.response, skip_special_tokens=True) for tokens in read]
    states = torch.stack(context.activations(Site("final"), read, "last_response"))
    return context.reward.score([one.prompt for one in rollouts], texts), value(states)


def in_order(guesses: torch.Tensor, ends: torch.Tensor, known: torch.Tensor) -> str:
    """Return the share of pairs of a prompt's replies that are in the order of their ends. All (replies, prompts)."""
    n_replies, n_prompts = ends.shape
    first, second = map(list, zip(*combinations(range(n_replies), 2), strict=True))
    asked = known[first] & known[second] & (ends[first] != ends[second])
    agree = (guesses[first] - guesses[second]).sign() * (ends[first] - ends[second]).sign()
    right = asked * (1 + agree) / 2  # one half for the same beginnings
    of_prompts = np.stack([right.sum(0), asked.sum(0)])
    drawn = np.random.default_rng(0).integers(n_prompts, size=(2000, n_prompts))
    low, high = np.quantile(np.divide(*of_prompts[:, drawn].sum(2)), (0.025, 0.975))
    return f"{np.divide(*of_prompts.sum(1)):.2f} ({low:.2f} to {high:.2f})"


def main(world: Testbed) -> None:
    """Print a table for each of the testbed's tasks."""
    replies = partial(
        FitContext,
        lm=LanguageModel.load(world.part("lm")),
        reward=RewardModel.load(world.part("reward")),
        decoding=Decoding(max_new_tokens=128, temperature=1.0),
        batch_size=32,
    )
    for task in sorted(folder.name for folder in world.data.iterdir()):
        data = load_data(load("tasks", task)(), world.data / task)
        value = rollout_value(replies(examples=data.train[:TRAIN]), TRAINING).function
        drawn = [replies(examples=data.test[:PROMPTS], seed=seed) for seed in range(REPLIES)]
        ends = torch.tensor([[one.reward for one in context.rollouts()] for context in drawn])
        print(f"\n{world.name}-{task}, {REPLIES} replies to each of {PROMPTS} prompts")
        print(f"{'tokens':>6}  {'reward':21} value function")
        for length in LENGTHS:
            known = torch.tensor([[len(one.tokens.response) > length for one in each.rollouts()] for each in drawn])
            both = zip(*(beginnings(each, length, value) for each in drawn), strict=True)
            print(f"{length:6}  " + "  ".join(in_order(torch.stack(guesses), ends, known) for guesses in both))


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "testbed"
    world = named(name)
    main(world) if world else sys.exit(f"{name} is no testbed.")
