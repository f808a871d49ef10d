"""Reference trustable decoding: the model is mixed with what follows similar states in good replies.

Paper: Luohe et al. 2024, "Reference Trustable Decoding: A Training-Free Augmentation Paradigm for Large Language
Models", NeurIPS 2024, arXiv 2409.20181; after Khandelwal et al. 2020, kNN-LM, arXiv 1911.00172.

    p(z)  =  (1 - share) p_0(z) + share * sum over the k nearest (o_i, z_i) with z_i = z of softmax_i(-|o - o_i| / T)

The datastore holds, for each token of preferred replies, the state at `final` that it is drawn from and the token.

Differences from the authors' code (ShiLuohe/ReferenceTrustableDecoding @38df2a1): theirs keeps answers of a task with a
few options and restricts the output to them, with several heads for wide states; here the references are the replies
that the pairs prefer, over the whole vocabulary, and states are one head. Distances are in units of the mean distance
between references, so that T carries over to other models: theirs is 1000 in units of the state.

Defaults: k 32 as published; share 0.25 as in kNN-LM; T 0.1; at most 8192 references. Cost: one pass over the preferred
replies to fit; for each token a product with all references, and their memory.

Pitfalls: it copies: what is near is often the same phrase. Task knowledge more than alignment, says the paper.

Learns from: pairs. Touches: logits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, log1p
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Reweighting, Site, Step
from steerbench.learn import Count, Positive, Range


class References(Reweighting):
    """Mixes the model with the tokens that follow the nearest of some states.

    `states` is (references, width), `tokens` (references,), whole numbers as floats; `unit` is the distance that counts
    as 1.
    """

    reads_states = True

    def __init__(self, states: Tensor, tokens: Tensor, beta: float, k: int, temperature: float, unit: float) -> None:
        self.states, self.tokens, self.beta = states, tokens, beta
        self.k, self.temperature, self.unit = k, temperature, unit

    def score(self, step: Step, tokens: Tensor) -> Tensor:
        """Return what the references say comes next, (rows, vocabulary): a distribution."""
        here = step.states
        distances = torch.cdist(here, self.states.to(here.device)) / self.unit
        near, which = distances.topk(min(self.k, len(self.states)), dim=-1, largest=False)
        following = self.tokens.to(here.device).long()[which]
        return torch.zeros_like(step.logits).scatter_add(-1, following, (-near / self.temperature).softmax(-1))

    def reweighted(self, step: Step) -> Tensor:
        """Return the logarithm of the mixture."""
        if not self.beta:
            return step.logits
        own = step.logits.log_softmax(-1) + log1p(-self.beta)
        theirs = self.score(step, self.tokens).log() + log(self.beta)
        return torch.logaddexp(own, theirs).masked_fill(step.logits == -torch.inf, -torch.inf)


@dataclass(frozen=True, kw_only=True)
class RTD(Steerer):
    """A mixture with what follows similar states in preferred replies.

    - `share`: of the references in the mixture, 0 to below 1
    - `k`: nearest references that count
    - `temperature`: of the softmax over them, in units of the mean distance between references
    - `size`: references that are kept, at most
    """

    engines = ("transformers",)
    off: ClassVar[Mapping[str, Any]] = {"share": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "share": (0.05, 0.1, 0.25, 0.5, 0.75),
        "temperature": (0.03, 0.1, 0.3),
    }

    share: Annotated[float, Range(0, below=1)] = 0.25
    k: Count = 32
    temperature: Positive = 0.1
    size: Count = 8192

    def fit(self, context: FitContext) -> Steering:
        """Read the states of the preferred replies."""
        replies = [pair.chosen for pair in context.pairs()]
        states = torch.cat([b.states for b in context.states(Site("final"), replies).batches(range(len(replies)), 64)])
        tokens = torch.tensor([z for reply in replies for z in reply.response])
        chosen = torch.randperm(len(tokens), generator=context.generator("references"))[: self.size].sort().values
        states, tokens = states[chosen], tokens[chosen]
        unit = float(torch.cdist(states[:256], states[-256:]).mean()) or 1.0
        context.report.update(references=len(tokens), distance=unit)
        part = References(states, tokens.float(), self.share, self.k, self.temperature, unit)
        return Steering(logits=(part,))
