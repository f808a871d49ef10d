"""Linear-AcT and Mean-AcT: transport each coordinate of a state from where other replies have it to where preferred do.

Paper: Rodriguez et al., "Controlling Language and Diffusion Models by Transporting Activations", ICLR 2025,
arXiv 2410.23054. Of one coordinate let a be the values in other replies and b those in preferred ones, both sorted:

    omega = sum (a - mean a) (b - mean b) / sum (a - mean a)^2,    beta = mean b - omega mean a
    h <- (1 - lambda) h + lambda (omega h + beta),    lambda = strength, from 0 to 1

at the output of every block, at all positions: the optimal transport in one dimension, if it is linear. `form=mean` has
omega 1 and adds mean b - mean a: Mean-AcT. `support=source` leaves values outside the range of a as they are, as
published. Layers are fitted one after the other, each on what the transports below it make of the other replies.

Differences from the authors' code (apple/ml-act @d2c3560): block outputs and not those of norms; preferred and other
replies of one task, read as the mean over the reply; no support by default, ours: a pooled mean varies less than single
tokens do, so that most coordinates of most tokens lie outside its range. A coordinate that varies by less than 1e-4 of
the mean absolute value in its layer is left alone, where theirs asks for 1e-4 in units of the state.

Defaults: strength 1, linear, every block, at most 256 pairs. Cost: two passes over replies for each layer; per token a
product and a sum for each coordinate.

Pitfalls: omega is that of pooled means, applied to tokens. lambda = 1 means the whole transport, not a safe strength.

On the testbed it does not come to 0.05 nats per token: all of the way, strength 1, is 0.004 to 0.005, and gains +0.13
of gold on HH-RLHF and, surely, +0.25 on SHP (five seeds, 96 test prompts); tuned by the guide with eight trials, +0.11
and +0.16, neither sure. It moves the mean over the reply, which is a short way.

Learns from: pairs. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from steerbench import FitContext, SteerbenchError, Steerer, Steering, steered
from steerbench.edits import PlacedEdit, Site, Transport
from steerbench.learn import Layer, Range, Share, Tokens, activations, block_at

LEAST_DEVIATION = 1e-4
"""Share of the mean absolute value of a layer below which a coordinate counts as constant."""


@dataclass(frozen=True, kw_only=True)
class LinearAcT(Steerer):
    """Linear transport from other to preferred replies.

    - `strength`: lambda, the share of the transport, from 0 to 1
    - `form`: linear transport, or its mean alone
    - `support`: whether values outside the range of the other replies stay as they are
    - `layer`: the one block, from 0, or a share of the depth such as 0.4; None: every block
    - `n_pairs`: at most, from the start of the training data
    - `scope`: positions that are edited
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "strength": (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0),
        "form": ("linear", "mean"),
    }

    strength: Share = 1.0
    form: Literal["linear", "mean"] = "linear"
    support: Literal["source", "everywhere"] = "everywhere"
    layer: Layer | None = None
    n_pairs: Annotated[int, Range(2)] = 256
    scope: Literal["all", "prompt", "response"] = "all"

    def fit(self, context: FitContext) -> Steering:
        """Fit the transports from the first layer to the last."""
        pairs = context.pairs()[: self.n_pairs]
        if len(pairs) < 2:
            raise SteerbenchError("linear_act: two pairs are the fewest; use more training examples.")
        sites = context.sites("resid_post")
        if self.layer is not None:
            sites = [Site("resid_post", block_at(context.lm, 0.0, self.layer))]
        targets = context.activations_at(sites, [pair.chosen for pair in pairs], "response_mean")
        edits: tuple[PlacedEdit, ...] = ()
        for site in sites:
            source = self._transported(context, site, [pair.rejected for pair in pairs], edits)
            edits += (PlacedEdit(site, self._transport(source, torch.stack(targets[site])), self.scope),)
        return Steering(edits=edits)

    def _transported(
        self, context: FitContext, site: Site, tokens: Sequence[Tokens], edits: tuple[PlacedEdit, ...]
    ) -> Tensor:
        """Return the pooled states of replies at a site, (replies, width), under the whole transports below it."""
        if not edits:
            return torch.stack(context.activations(site, tokens, "response_mean"))
        below = tuple(PlacedEdit(p.site, _whole(p.edit), "all") for p in edits)
        with steered(context.lm, Steering(edits=below)):
            return torch.stack(activations(context.lm, site, tokens, "response_mean", batch_size=context.batch_size))

    def _transport(self, source: Tensor, target: Tensor) -> Transport:
        """Return the transport of each coordinate; both are (replies, width)."""
        a, b = source.double().sort(dim=0).values, target.double().sort(dim=0).values
        from_mean = a - a.mean(0)
        varies = from_mean.square().mean(0).sqrt() > LEAST_DEVIATION * source.abs().mean()
        spread = from_mean.square().sum(0).where(varies, torch.ones(()).double())
        slope = (from_mean * (b - b.mean(0))).sum(0) / spread
        omega = slope if self.form == "linear" else torch.ones_like(slope)
        beta = b.mean(0) - omega * a.mean(0)
        omega, beta = omega.where(varies, torch.ones(()).double()), beta.where(varies, torch.zeros(()).double())
        support = [a[0].float(), a[-1].float()] if self.support == "source" else []
        return Transport(omega.float(), beta.float(), self.strength, support)


def _whole(edit: Any) -> Transport:
    """Return a transport at strength 1: what is fitted above it does not hang on the strength."""
    return Transport(edit.omega, edit.beta, 1.0, edit.support)
