"""DExperts: what an expert finds likelier than an anti-expert, added to the model's own logits.

Paper: Liu et al. 2021, "DExperts: Decoding-Time Controlled Text Generation with Experts and Anti-Experts", ACL 2021,
arXiv 2105.03023; Liu et al. 2024, "Tuning Language Models by Proxy", arXiv 2401.08565, with a small tuned model as the
expert and its untuned self as the anti-expert.

    logits(z)  =  logits_0(z) + alpha * (logits_expert(z) - logits_anti(z))

Each of the two reads the ids that the model reads, prompt included, on a cache of its own; all must share a vocabulary.
Without an anti-expert the model itself is it, and without an expert the model is the expert: one other model is enough.

Differences from the authors' code: no top-p filter before the sum; that one of the two may be left out is added here.
Defaults: alpha 1, that of proxy tuning. No model is named: name at least one, or nothing is added.

Cost: nothing to fit; for each token a pass of each of the models that are named. Pitfalls: an expert that was tuned
with another chat template reads a prompt that it does not know; report the expert alone beside it.

Learns from: nothing. Touches: logits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import Reweighting, Step


class ExpertGap(Reweighting):
    """Log-probability by an expert less that by an anti-expert; an empty name is the model that is steered."""

    def __init__(self, expert: str, anti: str, beta: float) -> None:
        self.expert, self.anti, self.beta = expert, anti, beta

    @property
    def models(self) -> Mapping[str, str]:
        """Those that are named."""
        return {role: name for role, name in (("expert", self.expert), ("anti", self.anti)) if name}

    def score(self, step: Step, tokens: Tensor) -> Tensor:
        """Return the gap of all tokens, (rows, vocabulary)."""
        sides = [step.logits_of(role) if role in self.models else step.logits for role in ("expert", "anti")]
        expert, anti = (side.log_softmax(-1) for side in sides)
        return expert - anti


@dataclass(frozen=True, kw_only=True)
class DExperts(Steerer):
    """An expert against an anti-expert.

    - `expert`: a model, `org/name@revision` or a folder; empty: the model that is steered
    - `anti`: likewise
    - `alpha`: what their difference counts
    """

    engines = ("transformers",)
    off: ClassVar[Mapping[str, Any]] = {}  # with neither named, as by default, it is the model
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"alpha": (0.25, 0.5, 1.0, 1.5, 2.0)}

    expert: str = ""
    anti: str = ""
    alpha: float = 1.0

    @property
    def models(self) -> Sequence[str]:
        """Whose revisions identify the records."""
        return [name for name in (self.expert, self.anti) if name]

    def fit(self, context: FitContext) -> Steering:
        """Nothing to learn."""
        return Steering(logits=(ExpertGap(self.expert, self.anti, self.alpha),))
