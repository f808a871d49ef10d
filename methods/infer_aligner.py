"""InferAligner: where a model's own state says that a request is harmful, add an aligned model's direction of harm.

Paper: Wang et al., "InferAligner: Inference-Time Alignment for Harmlessness through Cross-Model Guidance", EMNLP 2024,
arXiv 2401.11206. P is the state of the last position of a prompt, mean over the class minus mean over the rest:

    s_l = unit(mean P(class) - mean P(rest))  of the model itself;   theta_l the same of an aligned model
    g_l = 1 if <P, s_l> + b_l > 0, else 0,    b_l = -<midpoint of the two means, s_l>
    h_l <- h_l + alpha g_l theta_l            in the layers of a band, each with a gate of its own, on the response

The aligned model reacts to harm; the other one sees it, and does not care. Both must have the same states: the same
training to begin with, and equal width and depth. `aligned` names it. Without a name the model itself serves, under a
system text that asks it to be safe: so on the testbed, which has one model, whose replies follow such texts.

Differences from the paper, whose code is not released: the class is told from training data (`condition`, as in
`cast`), not from lists of harmful requests; `relative_norm` gives alpha theta a share of the states' length.

Defaults: the half of the training prompts that the model answers worst, the middle third of the layers, 0.1 of the
states' length in each of them. Cost: two passes over training prompts (and rollouts with `low_reward`), one of them of
the aligned model, which is not needed afterwards; one pass more over the prompt; per token an addition in each layer.

On the testbed it does not work (0.05 nats per token, five seeds, 96 test prompts): -0.55 of gold on HH-RLHF and -0.27
on SHP with `low_reward`, -0.36 and -0.31 with `declined`, sure but for the second. Tuned by the guide with eight trials
it changes nothing surely, at a thousandth of a nat per token to a hundredth. theta points to the class, and it helps
only where a model that sees the class behaves better for it. The direction of what is answered badly makes answers bad,
and the stand-in for an aligned model sees harm no differently from the model itself. Use `declined` with a model that
was trained to refuse.

Pitfalls: with another model of other states theta is noise, and nothing tells. Where the aligned model is the model
itself without a system text, theta is s. The gate separates by midpoints, so that a rare class costs false alarms.

Learns from: rollouts with rewards. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from steerbench import FitContext, LanguageModel, SteerbenchError, Steerer, Steering
from steerbench.data import Turn
from steerbench.edits import Add, ConditionGate, PlacedEdit, Site
from steerbench.learn import Condition, Layer, activations, between_classes, block_at, prompt_class, prompt_states

SAFE = "You are a helpful assistant. Your answer should be safe, careful, and harmless."


@dataclass(frozen=True, kw_only=True)
class InferAligner(Steerer):
    """A shift from an aligned model, gated layer by layer.

    - `strength`: multiplies the shift
    - `relative_norm`: length of the shift as a share of the mean length of the states, layer by layer
    - `aligned`: the aligned model, `org/name@revision` or a folder; empty: the model itself under `text`
    - `text`: system text under which the aligned model reads the prompts; empty: none
    - `condition`: the training prompts that the gates are to open for
    - `first_layer`: of the band, from 0, or a share of the depth such as 0.4; None: 1/3 of the depth
    - `last_layer`: of the band; None: 2/3 of the depth
    - `scope`: positions that are edited
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "relative_norm": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
        "condition": ("low_reward", "declined"),
    }

    strength: float = 1.0
    relative_norm: float = 0.1
    aligned: str = ""
    text: str = SAFE
    condition: Condition = "low_reward"
    first_layer: Layer | None = None
    last_layer: Layer | None = None
    scope: Literal["all", "prompt", "response"] = "response"

    @property
    def models(self) -> Sequence[str]:
        """The aligned model, where it is another one."""
        return (self.aligned,) if self.aligned else ()

    def fit(self, context: FitContext) -> Steering:
        """Read the training prompts with both models, and put theta behind the gate of s in each layer."""
        inside = prompt_class(context, self.condition).inside
        own = prompt_states(context, self._band(context.lm), "last_prompt")
        aligned = self._aligned_states(context, list(own))
        edits, right = [], {}
        for site, states in own.items():
            gate = midpoint_gate(site, states, inside)
            theta = normalize(between_classes(aligned[site], inside), dim=0)
            vector = theta * self.relative_norm * states.norm(dim=1).mean()
            edits.append(PlacedEdit(site, Add(vector, self.strength), self.scope, gate))
            right[str(site)] = float((gate.opens(states) == inside).float().mean())
        context.report.update(class_share=float(inside.float().mean()), right_on_training_prompts=right)
        return Steering(edits=tuple(edits))

    def _band(self, lm: LanguageModel) -> list[Site]:
        first, last = block_at(lm, 1 / 3, self.first_layer), block_at(lm, 2 / 3, self.last_layer)
        if first > last:
            raise SteerbenchError(f"infer_aligner: layers {first} to {last} are no band; set both.")
        return [Site("resid_post", layer) for layer in range(first, last + 1)]

    def _aligned_states(self, context: FitContext, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """Return the last states of the training prompts in the aligned model, (prompts, width) at each site."""
        turns = (Turn("system", self.text),) if self.text else ()
        prompts = [(*turns, *example.prompt) for example in context.examples]
        if not self.aligned:
            return prompt_states(context, sites, "last_prompt", prompts)
        other = LanguageModel.load(self.aligned, device=context.lm.device, dtype=context.lm.dtype)
        size, width = (lm.model.config.get_text_config().hidden_size for lm in (context.lm, other))
        if size != width or other.n_layers != context.lm.n_layers:
            raise SteerbenchError(
                f"{self.aligned} has {other.n_layers} layers of width {width}, and {context.lm.name} "
                f"{context.lm.n_layers} of {size}; name an aligned model with the same states."
            )
        tokens = [other.tokens(prompt) for prompt in prompts]
        read = {s: activations(other, s, tokens, "last_prompt", batch_size=context.batch_size) for s in sites}
        return {site: torch.stack(states) for site, states in read.items()}


def midpoint_gate(site: Site, states: Tensor, inside: Tensor) -> ConditionGate:
    """Return the gate that is open on the side of the class, seen from the midpoint of the two means."""
    axis = normalize(between_classes(states, inside), dim=0)
    midpoint = (states[inside].mean(0) + states[~inside].mean(0)) / 2
    return ConditionGate(str(site), axis, float(midpoint @ axis), "component", pool="last_prompt")
