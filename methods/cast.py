"""CAST, conditional activation steering: an edit that acts only on prompts of a class, told by one state of the prompt.

Paper: Lee et al., "Programming Refusal with Conditional Activation Steering", ICLR 2025, arXiv 2409.05907.

    s = cos(h, tanh(proj_c h)),  proj_c h = c c'h / c'c        h: a state of the prompt at the condition layer
    act on the whole response if s > threshold (or s < threshold, whichever tells the training prompts apart), else not

The edit behind the gate is CAA's shift, or the affine form of ablation (`edit=ablate`), at a layer of its own, learned
from preference pairs. The class is the training prompts that the model answers badly (`condition=low_reward`), or those
with a reply that declines (`declined`). c is mean(class) - mean(rest); layer, threshold and side are those with
the best F1 on training prompts, each measured with a c of the half of the prompts that it is not in.

Differences from the authors' code (IBM/activation-steering @52be602): c is a difference of means, not a first
principal component; thresholds are midpoints between training prompts and not a grid of 0.01; every row of a batch has
its own decision, where the code decides by the first row for all; the unsteered model decides, in a pass of its own, so
that the condition may lie behind the edit; the shift comes from preference pairs, not from refusals written for it.
`measure=cosine` is ours: s of the paper is the same for h and for -h, and tanh has a unit of its own. So is `read`:
h is the last state of the prompt, not the mean over it.

Defaults: cosine, last state, the block with the best F1, otherwise as CAA, with a shift of 0.3 of the states' length.
Cost: a fit of CAA, and a pass over training prompts (and rollouts with `low_reward`); one pass more over the prompt, up
to the condition layer; per token what the edit costs, and a selection where rows of a batch differ.

On the first testbed (HH-RLHF, 512 training and 256 test prompts, one seed), if the class is told by the world's own
truth, the last state tells harmful questions with an F1 of 1.00 (cosine) or 0.93 (as published), on training prompts
that c was not made of, and the mean over a prompt, in which most tokens are of earlier turns, with 0.50. Told by
`declined`, which misses four harmful questions in ten, the F1 is 0.81, and the gate right on 0.92 to 0.96 of the test
prompts. What the guide calls badly answered is harder to see: 0.75 of them.

The edit from the default layer and pool hardly steers there, with a gate as without: -0.00 of gold (-0.15 to +0.11)
behind it, -0.03 (-0.09 to +0.01) with `declined`, and +0.03 (-0.11 to +0.16) for CAA alone (64 test prompts, 256 to
train, one seed, greedy, not tuned). Read at the last token of a reply and placed in the first block, where CAA steers,
with `declined`, it gains 1.11 (0.61 to 1.61) on the 15 harmful questions, and leaves the worth of all other replies as
it was: +0.26 (+0.00 to +0.52) over all.

On the testbed the defaults gain +0.46 of gold on HH-RLHF (+0.19 to +0.73) and, surely, +0.37 on SHP (0.05 nats per
token, five seeds, 96 test prompts): -0.04 (-0.19 to +0.10) and 0.01 (-0.04 to +0.06) beside the same shift on all
prompts, `caa`, which changes every reply a little where this one changes some replies more. Tuned by the guide with
eight trials it gains +0.47 (+0.25 to +0.69) and, surely, +0.31, `caa` +0.48 and +0.38.

Pitfalls: decided once, so that harm later in an answer is missed. A prompt part composed with it moves the states
that the gate was fitted on. The fit's report says how often the gate is right on prompts that it was not fitted on.

Learns from: pairs and rollouts with rewards. Touches: activations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn.functional import normalize

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Ablate, Add, ConditionGate, Edit, GatePool, PlacedEdit, Site
from steerbench.learn import (
    Condition,
    Contrast,
    Layer,
    Threshold,
    at_relative_norm,
    best_threshold,
    between_classes,
    block_at,
    contrast,
    difference_of_means,
    held_out_measures,
    middle_layer,
    prompt_class,
    prompt_states,
)


@dataclass(frozen=True, kw_only=True)
class CAST(Steerer):
    """An edit behind a condition on the prompt.

    - `strength`: multiplies the shift; with `edit=ablate` the share of the component that is moved
    - `edit`: what is done where the gate is open: CAA's shift, or affine ablation
    - `relative_norm`: length of the shift as a share of the mean length of the states
    - `layer`: of the edit: block from 0, or a share of the depth such as 0.4; None: 13/32 of the depth
    - `pool`: where a reply is read for the edit
    - `condition`: the training prompts that the gate is to open for
    - `measure`: of the prompt: as published, or the cosine with the condition vector
    - `read`: what of the prompt is measured: its last state, or the mean of its states, as published
    - `condition_layer`: as `layer`; None: the block with the best F1
    - `scope`: positions that are edited
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "relative_norm": (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6),
        "layer": (0.0, 0.2, 0.4, 0.6, 0.8),
        "pool": ("response_mean", "last_response"),
    }

    strength: float = 1.0
    edit: Literal["add", "ablate"] = "add"
    relative_norm: float = 0.3
    layer: Layer | None = None
    pool: Literal["response_mean", "last_response"] = "response_mean"
    condition: Condition = "low_reward"
    measure: Literal["tanh", "cosine"] = "cosine"
    read: GatePool = "last_prompt"
    condition_layer: Layer | None = None
    scope: Literal["all", "prompt", "response"] = "response"

    def fit(self, context: FitContext) -> Steering:
        """Fit the edit on the pairs, the gate on the prompts, and put the one behind the other."""
        site = Site("resid_post", middle_layer(context.lm, self.layer))
        edit = self._edit(contrast(context, site, self.pool))
        return Steering(edits=(PlacedEdit(site, edit, self.scope, self._gate(context)),))

    def _edit(self, states: Contrast) -> Edit:
        toward = difference_of_means(states)
        if self.edit == "add":
            return Add(at_relative_norm(toward, states, self.relative_norm), self.strength)
        return Ablate(toward, float(states.preferred.mean(0) @ normalize(toward, dim=0)), self.strength)

    def _gate(self, context: FitContext) -> ConditionGate:
        """Return the gate at the block whose measure tells the class from the rest with the best F1."""
        found = prompt_class(context, self.condition)
        sites = context.sites("resid_post")
        if self.condition_layer is not None:
            sites = [Site("resid_post", block_at(context.lm, 0.0, self.condition_layer))]
        found_states = prompt_states(context, sites, self.read)
        fitted: dict[Site, Threshold] = {}
        for site, states in found_states.items():
            measured = held_out_measures(states, found, lambda x, y, site=site: self._measure(site, x, y))  # type: ignore[misc]
            if bool((measured != measured[0]).any()):
                fitted[site] = best_threshold(measured, found.inside)
        if not fitted:
            raise SteerbenchError("cast: every training prompt measures alike; set measure=cosine.")
        best = max(fitted, key=lambda site: fitted[site].f1)
        value, above, f1, accuracy = fitted[best]
        context.report["gate"] = {"site": str(best), "threshold": value, "above": above, "f1": f1, "accuracy": accuracy}
        context.report["gate"]["class_share"] = float(found.inside.float().mean())
        return ConditionGate(
            str(best), between_classes(found_states[best], found.inside), value, self.measure, above, self.read
        )

    def _measure(self, site: Site, states: Tensor, inside: Tensor) -> Callable[[Tensor], Tensor]:
        return ConditionGate(str(site), between_classes(states, inside), 0.0, self.measure).measured
