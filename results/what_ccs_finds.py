"""What CCS finds where two things tell replies apart: the preference, or a word that means nothing (arXiv:2312.10029).

python results/what_ccs_finds.py [MODEL [PAIRS.jsonl.gz]], pairs as HH-RLHF has them; by default the testbed's

The two replies of a pair stand in random order. With the words, one of them ends in "banana" and the other in "shed",
whichever is preferred. Each probe is fitted on two thirds of the pairs, the last one alone with labels, and asked about
the rest: the share of pairs whose two sides it puts in the order of the preference, and in that of the words. A probe
without labels has no sign: the better of both is told, so that a guess gets a little more than one half.
"""

import random
import sys
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression

from steerbench import FitContext, LanguageModel, load
from steerbench.data import load_data
from steerbench.edits import Site
from steerbench.learn import Contrast, Pair, contrast, fit_ccs, middle_layer, singular_directions
from steerbench.learn.fitting import NoReward

N, TAUGHT, SEED = 300, 200, 0
WORLD = Path(__file__).parent / "world1" / "data" / "hh_rlhf" / "train.jsonl.gz"

model = sys.argv[1] if len(sys.argv) > 1 else "testbed"
file = Path(sys.argv[2]) if len(sys.argv) > 2 else WORLD
lm, draw = LanguageModel.load(model), random.Random(SEED)
examples = load_data(load("tasks", "hh_rlhf")(), file).train[:N]
preferred_first, banana_first = ([draw.random() < 0.5 for _ in examples] for _ in range(2))


def read(words: bool) -> Contrast:
    """Return the mean states of both replies, the first side as the preferred one."""
    pairs = []
    for example, good, banana in zip(examples, preferred_first, banana_first, strict=True):
        sides = (example.chosen, example.rejected) if good else (example.rejected, example.chosen)
        ends = ((" banana", " shed") if banana else (" shed", " banana")) if words else ("", "")
        pairs.append(Pair(*(lm.tokens(example.prompt, side + end) for side, end in zip(sides, ends, strict=True))))
    context = FitContext(lm=lm, examples=[], reward=NoReward(), seed=SEED)
    return contrast(context, Site("resid_post", middle_layer(lm, None)), "response_mean", pairs)


def probes(states: Contrast) -> dict[str, torch.Tensor]:
    """Return how much more each probe gives to the first side, (pairs,)."""
    known = Contrast(*(side[:TAUGHT] for side in states))
    ccs = fit_ccs(known, torch.Generator().manual_seed(SEED), centre="class", optimizer="lbfgs")
    differences = states.differences - known.differences.mean(0)
    first = singular_directions(differences[:TAUGHT], 0.0)[0]
    taught = LogisticRegression(max_iter=1000).fit(differences[:TAUGHT].numpy(), preferred_first[:TAUGHT])
    return {
        "CCS": ccs.probability(states.preferred, "preferred") - ccs.probability(states.other, "other"),
        "first singular vector": differences @ first,
        "logistic regression, labels known": torch.from_numpy(taught.decision_function(differences.numpy())),
    }


def share(found: torch.Tensor, truth: list[bool]) -> float:
    """Return how many of the pairs that were not learned from are in order, whichever way round."""
    right = float(((found > 0) == torch.tensor(truth))[TAUGHT:].float().mean())
    return max(right, 1 - right)


plain, marked = probes(read(words=False)), probes(read(words=True))
print(f"{model}, {len(examples) - TAUGHT} pairs that were not learned from\n")
print(f"{'':35}  as they are    with the words\n{'':35}   preference  preference  word")
for name in plain:
    shares = [share(*asked) for asked in ((plain[name], preferred_first), (marked[name], preferred_first))]
    print("{:35} {:12.2f} {:11.2f} {:5.2f}".format(name, *shares, share(marked[name], banana_first)))
