"""GenARM: an autoregressive reward, which has a score for each next token, added to the model's log-probabilities.

Paper: Xu et al. 2025, "GenARM: Reward Guided Generation with Autoregressive Reward Model for Test-time Alignment",
ICLR 2025, arXiv 2410.08193.

    log p(z)  =  log p_0(z | x, y_<t) + alpha * log p_r(z | x, y_<t)       + constant

p_r is trained on the task's pairs, `-log sigma(beta_r (log p_r(preferred) - log p_r(other)))`: the model itself with a
low-rank adapter, as rows of the same pass; or any model with the same vocabulary, by name.

Differences from the authors' code (Yuancheng-Xu/GenARM @824e846): the adapter is at the output projections of attention
and feed-forward part of each block, where theirs is at the projections of query and value; alpha alone sharpens the
distribution, to temperature 1 / (1 + alpha) where p_r is p_0, and is not made up for by another temperature, which is
the decoding's. `contrast` subtracts log p_0 from the reward: what is left is what the adapter learned, without that.

Defaults: rank 8, lr 5e-4, beta_r 0.05, one epoch, 32 pairs in a batch, alpha 1, as published; the published adapter is
scaled by alpha / rank = 2, which a higher rate of learning stands for here. Cost: one pass back and forth over the
pairs for each epoch; twice as many rows in each pass, or another model's pass for each token.

Pitfalls: without a reference term it makes replies likely that were preferred, their length and style included.

Learns from: pairs. Touches: logits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from steerbench import FitContext, Steerer, Steering
from steerbench.edits import LowRank, PlacedEdit, Reweighting, Site, Step, Twin
from steerbench.learn import AdapterTraining, Count, Positive, train_autoregressive_reward


class TokenReward(Reweighting):
    """log p_r of each next token: by a model of another name, or else by the model with an adapter.

    `sites` are where `downs[i]`, (rank, width), and `ups[i]`, (width, rank), act.
    """

    def __init__(
        self,
        model: str,
        sites: list[str],
        downs: Sequence[Tensor],
        ups: Sequence[Tensor],
        beta: float,
        contrast: bool,
    ) -> None:
        self.model, self.sites, self.downs, self.ups = model, sites, list(downs), list(ups)
        self.beta, self.contrast = beta, contrast
        edits = [LowRank(down, up) for down, up in zip(downs, ups, strict=True)]
        self._twin = Twin(edits=tuple(PlacedEdit(Site.parse(s), e, "all") for s, e in zip(sites, edits, strict=True)))

    @property
    def models(self) -> Mapping[str, str]:
        """The one that is named."""
        return {"reward": self.model} if self.model else {}

    @property
    def twin(self) -> Twin | None:
        """The model with the adapter."""
        return None if self.model or not self.beta else self._twin

    def score(self, step: Step, tokens: Tensor) -> Tensor:
        """Return the reward of all tokens, (rows, vocabulary)."""
        logits = step.logits_of("reward") if self.model else step.logits_of_twin()
        reward = logits.log_softmax(-1)
        return reward - step.logits.log_softmax(-1) if self.contrast else reward


@dataclass(frozen=True, kw_only=True)
class GenARM(Steerer):
    """An autoregressive reward added to the log-probabilities.

    - `alpha`: weight of the reward's log-probabilities
    - `model`: that gives them, `org/name@revision` or a folder; empty: an adapter is trained
    - `contrast`: whether the model's own are subtracted from them
    - `rank`: of the adapter
    - `lr`: learning rate of AdamW
    - `beta_r`: of the loss, in inverse nats
    - `epochs`: passes over the pairs
    - `batch_size`: pairs in a step
    """

    engines = ("transformers",)
    off: ClassVar[Mapping[str, Any]] = {"alpha": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"alpha": (0.25, 0.5, 1.0, 2.0, 4.0), "contrast": (False, True)}

    alpha: float = 1.0
    model: str = ""
    contrast: bool = False
    rank: Count = 8
    lr: Positive = 5e-4
    beta_r: Positive = 0.05
    epochs: Count = 1
    batch_size: Count = 32

    @property
    def models(self) -> Sequence[str]:
        """Whose revision identifies the records."""
        return [self.model] if self.model else []

    def fit(self, context: FitContext) -> Steering:
        """Train the adapter, unless a model is named."""
        if self.model:
            return Steering(logits=(TokenReward(self.model, [], [], [], self.alpha, self.contrast),))
        training = AdapterTraining(
            rank=self.rank, lr=self.lr, beta=self.beta_r, epochs=self.epochs, batch_size=self.batch_size
        )
        trained = train_autoregressive_reward(context, training)
        context.report["losses"] = trained.losses
        sites = [str(site) for site in trained.sites]
        return Steering(logits=(TokenReward("", sites, trained.downs, trained.ups, self.alpha, self.contrast),))
