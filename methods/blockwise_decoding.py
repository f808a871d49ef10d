"""Controlled decoding, blockwise: draw K continuations of M tokens, keep the one of the highest value, and go on.

Paper: Mudgal et al. 2024, "Controlled Decoding from Language Models", ICML 2024, arXiv 2310.17022, section 3.2.

    z* = argmax_k V([x, y, z_k]),  z_1 .. z_K drawn from the model, M tokens each;   y <- [y, z*]
    V(x, y) ~ E[r(x, y + rest)],  the rest drawn from the model
    KL(chosen || drawn) <= (blocks of the response) * (log K - (K - 1) / K)

V is the value function that RE-Control climbs, fitted on the same rollouts: a ReLU network of the state that the next
token would be drawn from, so that it costs nothing to read. `scorer=guide` asks the reward model about the text so far
instead. With M as long as the response and the guide it is best of N, and with K = 1 it is the model.

Differences from the authors' code: there is none. The paper's prefix scorer is a language model of its own, trained by
Q-learning (CD-Q) or on the final reward of each prefix (CD-FUDGE); here it is a head on the model's own states, trained
by lambda-returns: `td_lambda=1` is CD-FUDGE, 0 learns from the next state alone. The value of a finished response is
read where its last token was drawn from.

Defaults: K 4 and M 32 as in the paper's experiments; the network of RE-Control's HH-RLHF setting. Cost: one response
to each training prompt, and one pass over it, to fit. K rows for each prompt, on one cache; with the guide, K scores of
the reward model for each block besides.

Pitfalls: small blocks follow the noise of V, whose faults add up over blocks; a guide was not trained on beginnings.
Greedy candidates are all alike, so it needs a temperature above 0. `candidates` is a price, not a setting to tune.

Learns from: rollouts with rewards, reward at test time. Touches: choice of responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Blocks, Candidate, DecodePart, DecodingContext, Site, bound_of, rewards_of
from steerbench.learn import Count, Positive, Range, Share, Training, ValueFunction, rollout_value


class BestBlock(DecodePart):
    """Go on from the candidate of the highest value: by a network of its state, or by the guide where there is none."""

    def __init__(self, candidates: int, block: int, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        if not 1 <= candidates <= 64 or block < 1:
            raise SteerbenchError(
                f"blockwise_decoding: candidates={candidates} must be from 1 to 64, and block={block} 1 or more."
            )
        self.candidates, self.block = candidates, block
        self.weights, self.biases = list(weights), list(biases)

    @property
    def blocks(self) -> Blocks:
        """Blocks of one length."""
        return Blocks(tokens=self.block)

    @property
    def site(self) -> Site | None:
        """Where the network reads states."""
        return Site("final") if self.weights else None

    @property
    def asks_reward(self) -> bool:  # type: ignore[override]
        """Whether there is no network."""
        return not self.weights

    def choice_kl(self, draws: Sequence[int]) -> float:
        """Upper bound of KL(chosen || drawn), in nats."""
        return bound_of(draws)

    def select(self, context: DecodingContext, rows: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        """Continue the best candidate of each prompt in as many ways as there are candidates."""
        values = self._values(rows) if self.weights else rewards_of(context, rows)
        return [[int(of_row.argmax())] * self.candidates for of_row in values]

    def _values(self, rows: Sequence[Sequence[Candidate]]) -> list[Tensor]:
        states = torch.stack([c.state for row in rows for c in row if c.state is not None])
        network = ValueFunction(*(tuple(t.to(states.device) for t in ts) for ts in (self.weights, self.biases)))
        return list(torch.split(network(states), [len(row) for row in rows]))


@dataclass(frozen=True, kw_only=True)
class BlockwiseDecoding(Steerer):
    """The best of K continuations by a value function, block by block.

    - `candidates`: continuations that are drawn for each block, 1 to 64
    - `block`: tokens of a block
    - `scorer`: a value function of the state, or the guide on the text so far
    - `td_lambda`: of the value function; 0 learns from the next state alone, 1 from the reward alone
    - `layers`: of the value function; 1 is linear
    - `hidden`: units of its hidden layers; None: 4096, or the width of the state where that is less
    - `lr`: learning rate of Adam
    - `epochs`: at most; the best one is kept
    - `batch_size`: rollouts in a step of training
    """

    engines = ("transformers",)
    off: ClassVar[Mapping[str, Any]] = {"candidates": 1}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "block": (4, 8, 16, 32),
        "scorer": ("value", "guide"),
        "td_lambda": (0.9, 0.95, 1.0),
    }
    graded = False

    candidates: Annotated[int, Range(1, 64)] = 4
    block: Count = 32
    scorer: Literal["value", "guide"] = "value"
    td_lambda: Share = 0.95
    layers: Annotated[int, Range(1, 3)] = 3
    hidden: Count | None = None
    lr: Positive = 1e-4
    epochs: Count | None = None
    batch_size: Count = 16

    def fit(self, context: FitContext) -> Steering:
        """Train the value function of the rollouts, if it is to be asked."""
        if self.scorer == "guide":
            return Steering(decode=BestBlock(self.candidates, self.block, [], []))
        training = Training(
            layers=self.layers,
            hidden=self.hidden,
            lr=self.lr,
            batch_size=self.batch_size,
            epochs=self.epochs,
            td_lambda=self.td_lambda,
        )
        value = rollout_value(context, training)
        context.report.update(value.report)
        return Steering(decode=BestBlock(self.candidates, self.block, *value.function))
