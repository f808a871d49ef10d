"""AlignEZ: steer along directions found in preference pairs that the model writes itself.

Paper: Adila et al., "Is Free Self-Alignment Possible?" (version 1, 2024) and "Alignment, Simplified: Steering LLMs with
Self-Generated Preferences" (version 2, 2025), arXiv 2406.03642.

For each query the model describes a good and a bad answer, then answers under each description (`self_generated`).
Both answers, after the plain query, are read at their last token, and unit vectors t toward the good side are found in
each layer: `identify=svd`, right singular vectors of the differences, not centred; `identify=ccs`, the weights of a
contrast-consistent probe on the raw states, 10 restarts. The last position x of each pass is edited, s = <x, t>:

    version=1   one t per layer, in the layers below the elbow of the CCS losses: what leans to the bad side is removed,
                what leans to the good side boosted by its projection:   x + max(-s, 0) t, then + max(s, 0) t
    version=2   all t that hold 90 % of the energy of the differences of pairs with cos(good, bad) <= 0.8, and of these
                those with cos(query, t) <= 0; in the 5 layers onto whose t the query projects longest:
                    edit=relu   x + sum max(-s, 0) t, over cos(query, t) < 0: removes what leans to the bad side
                    edit=tanh   x + sum u tanh(s / u) t: published with u = 1; amplifies, whatever the sign of t
                    edit=add    x + sum u t: ours; pushes toward the good side

`strength` multiplies what is added. `sign=blind` is the published form: signs of the SVD as they come, whole
projections (version 1: x - s t, then nothing is left to boost), of the CCS probes only those that happen to point to
the bad side. `matrix=classes`, also published for version 1, removes the first singular vector of the bad answers and
boosts that of the good ones: both are nearly the common mean. `end_token=true` reads answers at an end token behind
them, as the authors of CCS do. `optimizer=adamw` trains the probe as published, see `fit_ccs`.

Differences from the authors' code (AndrewWoodDev/AlignEZ @76f1d5ce, a re-upload; no release is known): queries are
those of the train split unless the run is transductive; answers are as long as the protocol allows; `mlp_out` for both
versions, where version 1 reads `gate_proj` (`site=mlp_pre`). Slips not followed: a removal scaled by |w|; a boost
elementwise instead of along the direction; help-flagged probes ignored; layer scores summed over the wrong axis;
questions and answers misaligned behind a dropped pair; a doubled `Assistant:`; signs left to chance.

Defaults: version 2, 200 queries, strength 1; `edit=relu`, published for harmlessness, for the published `tanh` behind
this filter amplifies what leans to the bad side once the signs are those of the pairs. In `tanh` and `add` the step u
is 0.3 of the mean length of the layer's states, ours: the published 1, in units of the state (`relative_norm=none`),
belongs to models whose states are that short. Tuning searches strength, edit, pool and end token. Cost: two
descriptions and two answers per query and a pass per layer to fit; version 2 reads the prompt once more; two thin
products per layer.

Pitfalls: where good and bad answers end alike, in a full stop, the last token says little of what came before. On the
testbed, 64 validation prompts of HH-RLHF, one seed, strength 1, in standard deviations of the guide over unsteered
replies, read at the last token, then at an end token: `tanh` -0.76 and -0.01 (`sign=blind`, as published: -0.36 and
-0.05), `relu` -0.14 and +0.02, `add` -1.06 and +0.19; `relu` over the mean of the answer with its end token +0.10.

Learns from: prompts (it writes the pairs itself). Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Edit, Gated, PlacedEdit, RemoveBoost
from steerbench.learn import (
    CCS,
    Contrast,
    Count,
    Range,
    contrasts,
    elbow,
    fit_ccs,
    principal_difference,
    self_generated,
    singular_directions,
    toward_preferred,
)


@dataclass(frozen=True, kw_only=True)
class AlignEZ(Steerer):
    """Directions of self-generated preferences.

    - `identify`: how directions are found
    - `version`: of the paper
    - `strength`: multiplies what is added
    - `relative_norm`: version 2: the step u as a share of the mean length of a layer's states; None: 1, as published
    - `edit`: version 2: what is done along the directions
    - `sign`: whether directions are turned toward the good side
    - `matrix`: version 1: what the singular vectors are of
    - `filtered`: version 2: whether each query keeps the directions that it does not lean to already
    - `n_layers`: version 2: layers that are edited for a query
    - `energy`: version 2: share of the energy of the differences that the directions hold
    - `max_cosine`: version 2: pairs whose two answers are more alike are left out
    - `site`: what is read and edited
    - `pool`: where an answer is read
    - `end_token`: whether answers are read at an end token behind them
    - `optimizer`: of the probes of CCS
    - `good`, `bad`: words for the two kinds of answers that the model writes
    - `n_queries`: prompts that pairs are written for, at most
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "strength": (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
        "edit": ("relu", "tanh", "add"),
        "pool": ("last_response", "response_mean"),
        "end_token": (False, True),
    }

    identify: Literal["svd", "ccs"] = "svd"
    version: Literal[1, 2] = 2
    strength: float = 1.0
    relative_norm: float | None = 0.3
    edit: Literal["relu", "tanh", "add"] = "relu"
    sign: Literal["fixed", "blind"] = "fixed"
    matrix: Literal["differences", "classes"] = "differences"
    filtered: bool = True
    n_layers: Count = 5
    energy: Annotated[float, Range(above=0, most=1)] = 0.9
    max_cosine: Annotated[float, Range(-1, 1)] = 0.8
    site: Literal["mlp_out", "mlp_pre", "resid_post"] = "mlp_out"
    pool: Literal["last_response", "response_mean"] = "last_response"
    end_token: bool = False
    optimizer: Literal["lbfgs", "adamw"] = "lbfgs"
    good: str = "helpful"
    bad: str = "useless"
    n_queries: Count = 200

    def fit(self, context: FitContext) -> Steering:
        """Write pairs, find directions in every layer, and place the edits of the version."""
        written = self_generated(context, self.good, self.bad, self.n_queries).kept
        pairs = [g.ended(context.lm) if self.end_token else g.pair for g in written]
        sites = {site.layer or 0: site for site in context.sites(self.site)}
        states = contrasts(context, list(sites.values()), self.pool, pairs)
        read = {layer: states[site] for layer, site in sites.items()}
        edits = self._remove_and_boost(context, read) if self.version == 1 else self._gated(context, read)
        if not edits:
            raise SteerbenchError("alignez: no layer tells good answers from bad ones; use more training examples.")
        return Steering(edits=tuple(PlacedEdit(sites[layer], edit) for layer, edit in edits.items()))

    def _remove_and_boost(self, context: FitContext, read: Mapping[int, Contrast]) -> dict[int, Edit]:
        """Version 1: one direction in each layer below the elbow."""
        probes = {layer: self._probe(context, layer, states) for layer, states in read.items()}
        losses = [probe.loss for probe in probes.values()]
        chosen = [[*probes][i] for i in elbow(losses)]
        context.report.update(ccs_losses=losses, layers=chosen)
        edits: dict[int, Edit] = {}
        for layer in chosen:
            states, one_sided = read[layer], self.sign == "fixed"
            toward = probes[layer].direction(states) if self.identify == "ccs" else principal_difference(states)
            if toward is None or (self.identify == "ccs" and not one_sided and toward @ probes[layer].weight > 0):
                continue
            sides = (
                (-toward, toward) if self.matrix == "differences" else (_axis(states.other), _axis(states.preferred))
            )
            edits[layer] = RemoveBoost(*sides, self.strength, one_sided)
        return edits

    def _gated(self, context: FitContext, read: Mapping[int, Contrast]) -> dict[int, Edit]:
        """Version 2: a subspace in each layer that has pairs which differ."""
        edits: dict[int, Edit] = {}
        sizes: dict[str, list[int]] = {}
        for layer, states in read.items():
            apart = states.apart(self.max_cosine)
            rows = self._subspace(context, layer, apart) if len(apart.preferred) > 1 else None
            sizes[str(layer)] = [len(apart.preferred), 0 if rows is None else len(rows)]
            if rows is not None:
                rows = -rows if self.edit == "relu" and self.sign == "fixed" else rows
                contest = f"{self.good}/{self.bad} by {self.identify} at {self.site}, {self.edit}, {self.sign}"
                step = 1.0 if self.relative_norm is None else self.relative_norm * states.mean_length
                edits[layer] = Gated(rows, self.strength, self.edit, self.filtered, contest, self.n_layers, step)
        context.report.update(pairs_and_directions=sizes)
        return edits

    def _probe(self, context: FitContext, layer: int, states: Contrast) -> CCS:
        return fit_ccs(states, context.generator("alignez", layer), optimizer=self.optimizer)

    def _subspace(self, context: FitContext, layer: int, states: Contrast) -> Tensor | None:
        if self.identify == "ccs":
            probe = self._probe(context, layer, states)
            toward = probe.direction(states) if self.sign == "fixed" else normalize(probe.weight, dim=0)
            return None if toward is None else toward[None]
        rows = singular_directions(states.differences, self.energy)
        return toward_preferred(rows, states) if self.sign == "fixed" else rows


def _axis(states: Tensor) -> Tensor:
    """Return the first right singular vector of states, (width,), toward their mean."""
    return toward_preferred(singular_directions(states, 0.0), Contrast(states, torch.zeros_like(states)))[0]
