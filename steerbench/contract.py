"""The contract suite: invariants that every method must keep, on every family of models.

Each invariant is one function of a `Case`; it returns a sentence that says what is broken, or None.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from steerbench import registry, tiny
from steerbench.dialogue import Dialogue, user
from steerbench.errors import SteerbenchError, suggest
from steerbench.generation import activations, generate, response_logits
from steerbench.hooks import Positions, steered, watched
from steerbench.lm import Batch, LanguageModel, Tokens
from steerbench.progress import Progress, silent
from steerbench.protocol import Decoding
from steerbench.response import Response
from steerbench.reward import Reward
from steerbench.sites import Place
from steerbench.spec import MethodSpec, Part, build, hyperparameters, parse
from steerbench.steerer import FitContext, Steerer
from steerbench.steering import Edit, PlacedEdit, Steering

_DECODING = Decoding(max_new_tokens=6)
_PROMPTS: tuple[Dialogue, ...] = tuple(map(user, ("a", "How do I bake bread?", "Hi there", "Tell me more, please.")))
_CLOSE = 1e-4
"""Largest difference of logits that float32 arithmetic in another order explains."""


class Result(NamedTuple):
    """An invariant on a family: `problem` says what is broken; None means that it holds."""

    family: str
    invariant: str
    problem: str | None


class VowelReward(Reward):
    """A reward that needs no model: the share of vowels. For the contract suite and tests."""

    name = "vowels"
    revision = "1"

    def score(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str], progress: Progress = silent
    ) -> torch.Tensor:
        """Return the share of vowels in each response, (N,)."""
        return torch.tensor([sum(c in "aeiou" for c in r.lower()) / max(len(r), 1) for r in responses])


@dataclass
class Case:
    """A method on a tiny random model, fitted once."""

    lm: LanguageModel
    steerer: Steerer
    steering: Steering
    weights: dict[str, Tensor]
    """Before anything was fitted."""

    def context(self) -> FitContext:
        """Return a fresh context on the tiny model."""
        return FitContext(lm=self.lm, examples=tiny.examples()[:16], reward=VowelReward(), decoding=_DECODING)

    def logits(self, steering: Steering) -> list[Tensor]:
        """Return the logits of fixed responses under a steering, each (tokens, vocabulary)."""
        given = [Tokens(self.lm.tokens(steering.apply_prompt(p)).prompt, (5, 6, 7)) for p in _PROMPTS]
        found = dict(response_logits(self.lm, [*given, Tokens((9,), (5, 6))], replace(steering, decode=None)))
        return [found[i] for i in range(len(found))]

    def generate(self, steering: Steering, *, batch_size: int = 16, use_cache: bool = True) -> list[Response]:
        """Return greedy responses to the fixed prompts."""
        return generate(
            self.lm,
            _PROMPTS,
            steering,
            _DECODING,
            reward=VowelReward(),
            batch_size=batch_size,
            use_cache=use_cache,
        )

    def hooks(self) -> int:
        """Return how many hooks the model carries."""
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in self.lm.model.modules())

    def changed(self) -> str | None:
        """Return the name of a weight that is not what it was, or None."""
        now = self.lm.model.state_dict()
        return next((name for name, old in self.weights.items() if not torch.equal(old, now[name])), None)


Invariant = Callable[[Case], str | None]


def fit_changes_no_weight(case: Case) -> str | None:
    """Fit leaves the model as it found it."""
    if name := case.changed():
        return f"fit changed the weight {name}; methods must leave the model as it is."
    return "fit left a hook in the model; let the engine place edits." if case.hooks() else None


def fit_is_reproducible(case: Case) -> str | None:
    """The same seed gives the same bytes."""
    if case.steerer.fit(case.context()).digest() == case.steering.digest():
        return None
    return "two fits with the same seed differ; draw from context.generator(), never from the global generator."


def hyperparameters_round_trip(case: Case) -> str | None:
    """The hyperparameters, written as a specification, give the same method."""
    name = next(n for n in registry.names("methods") if registry.load("methods", n) is type(case.steerer))
    values = hyperparameters(case.steerer)
    text = {
        key: "none" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for key, v in values.items()
    }
    again = build(parse(str(MethodSpec((Part(name, text),))))[0])[0]
    return None if again == case.steerer else f"hyperparameters {values} come back as {hyperparameters(again)}."


def off_is_bit_equal(case: Case) -> str | None:
    """Switched off, the method gives the unsteered model's logits bit for bit."""
    idle = replace(case.steerer, **case.steerer.off).fit(case.context())
    pairs = zip(case.logits(idle), case.logits(Steering()), strict=True)
    if all(torch.equal(a, b) for a, b in pairs) and case.generate(idle) == case.generate(Steering()):
        return None
    return f"with {dict(case.steerer.off)} the logits differ from the unsteered model's."


def steering_leaves_no_trace(case: Case) -> str | None:
    """After generation the model is bit-equal to before and carries no hook."""
    case.generate(case.steering)
    if name := case.changed():
        return f"generation changed the weight {name}."
    return "generation left a hook in the model." if case.hooks() else None


def error_leaves_no_trace(case: Case) -> str | None:
    """After an exception in the middle of a forward pass, too."""

    def fail(*_: object) -> None:
        raise InterruptedError

    handle = case.lm.anatomy.blocks[-1].register_forward_pre_hook(fail)
    try:
        case.generate(case.steering)
    except InterruptedError:
        pass
    finally:
        handle.remove()
    if name := case.changed():
        return f"an exception during generation left the weight {name} changed."
    return "an exception during generation left a hook in the model." if case.hooks() else None


def batch_equals_single(case: Case) -> str | None:
    """A batch of n equals n batches of 1."""
    if case.generate(case.steering) == case.generate(case.steering, batch_size=1):
        return None
    return "responses in a batch differ from those one by one; treat each row by itself."


def cached_equals_recomputed(case: Case) -> str | None:
    """Decoding with the KV cache equals full recomputation."""
    if case.generate(case.steering) == case.generate(case.steering, use_cache=False):
        return None
    return "responses with the KV cache differ from those without; an edit must not count positions or calls."


def teacher_forcing_equals_decoding(case: Case) -> str | None:
    """Scoring the generated tokens finds each of them the most likely."""
    steering = replace(case.steering, decode=None)
    responses = case.generate(steering)
    prompts = [case.lm.tokens(steering.apply_prompt(p)).prompt for p in _PROMPTS]
    tokens = [Tokens(p, r.ids) for p, r in zip(prompts, responses, strict=True)]
    for i, logits in response_logits(case.lm, tokens, steering):
        chosen = logits.gather(-1, torch.tensor(tokens[i].response, dtype=torch.long)[:, None])[:, 0]
        if bool((logits.amax(-1) - chosen > _CLOSE).any()):
            return "scoring a generated response finds other tokens more likely than decoding did."
    return None


def edits_keep_their_input(case: Case) -> str | None:
    """An edit does not write into the activations it is given."""
    for edit, h, state in _edits_with_input(case):
        before = h.clone()
        edit(h, state)
        if not torch.equal(before, h):
            return f"{type(edit).__name__} writes into the activations it is given; return a new tensor."
    return None


def edits_treat_positions_alone(case: Case) -> str | None:
    """What an edit does to a position does not depend on the others in the pass."""
    for edit, h, state in _edits_with_input(case):
        whole, part = edit(h, state), edit(h[:, 1:], state)
        if not torch.allclose(whole[:, 1:], part, atol=_CLOSE):
            return f"{type(edit).__name__} mixes positions of one pass; decoding sees them one at a time."
    return None


def edits_compute_in_float32(case: Case) -> str | None:
    """An edit computes in float32; the engine adds its result once to a half-precision state."""
    for edit, h, state in _edits_with_input(case):
        if (dtype := edit(h, state).dtype) != torch.float32:
            return f"{type(edit).__name__} returns {dtype}; compute in the float32 it is given."
    return None


def declared_positions_change(case: Case) -> str | None:
    """Exactly the positions of the declared scopes are edited: no padding, nothing behind the end of a response."""
    end = case.lm.end_ids[0]
    batch = case.lm.right_padded([Tokens((5, 6, 7), (8, end, 9)), Tokens((5,), (6, 7)), Tokens((5, 6), ())])
    for place, placed in _by_place(case):
        before, after = _around(case, batch, place, placed)
        positions = Positions(batch, case.lm.end_ids, cached=False)
        positions.advance(batch.input_ids)
        declared = torch.stack([positions.mask(p.scope) for p in placed]).any(0)
        if bool(((before != after).any(-1) & ~declared).any()):
            return f"activations at {placed[0].site} change outside the scope {placed[0].scope!r}."
    return None


def saving_keeps_everything(case: Case) -> str | None:
    """save -> load -> generate gives identical output."""
    with TemporaryDirectory() as folder:
        case.steering.save(Path(folder))
        again = Steering.load(Path(folder))
    if again.digest() != case.steering.digest() or case.generate(again) != case.generate(case.steering):
        return "a saved and loaded steering behaves differently; each argument of __init__ must be kept as it came."
    return None


def _by_place(case: Case) -> list[tuple[Place, list[PlacedEdit]]]:
    places: dict[Place, list[PlacedEdit]] = {}
    for placed in case.steering.edits:
        places.setdefault(case.lm.anatomy.place(placed.site), []).append(placed)
    return list(places.items())


@torch.no_grad()
def _around(case: Case, batch: Batch, place: Place, placed: Sequence[PlacedEdit]) -> tuple[Tensor, Tensor]:
    """Return the activations at a place before and after its edits, each (rows, columns, width)."""
    before: list[Tensor] = []
    after: list[Tensor] = []
    positions = Positions(batch, case.lm.end_ids, cached=False)
    with (
        watched(place, lambda h: before.append(h.clone())),
        steered(case.lm.model, case.lm.anatomy, placed, positions),
        watched(place, lambda h: after.append(h.clone())),
    ):
        case.lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    shape = (*batch.input_ids.shape, -1)
    return before[0].reshape(shape), after[0].reshape(shape)


def _edits_with_input(case: Case) -> list[tuple[Edit, Tensor, object]]:
    """Return each edit with random activations, (2 rows, 3 positions, width), and the state it makes of them."""
    found = []
    for placed in case.steering.edits:
        width = len(activations(case.lm, placed.site, [Tokens((5,))], "last_prompt")[0])
        h = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0))
        state = placed.edit.start(h.clone(), torch.ones(2, 3, dtype=torch.bool))
        found.append((placed.edit, h, state))
    return found


INVARIANTS: tuple[Invariant, ...] = (
    fit_changes_no_weight,
    fit_is_reproducible,
    hyperparameters_round_trip,
    off_is_bit_equal,
    steering_leaves_no_trace,
    error_leaves_no_trace,
    batch_equals_single,
    cached_equals_recomputed,
    teacher_forcing_equals_decoding,
    edits_keep_their_input,
    edits_treat_positions_alone,
    edits_compute_in_float32,
    declared_positions_change,
    saving_keeps_everything,
)


def families(name: str | None) -> list[str]:
    """Return the family of that name, or all. Raises SteerbenchError for an unknown one."""
    if name is not None and name not in tiny.FAMILIES:
        raise SteerbenchError(suggest("family", name, list(tiny.FAMILIES)))
    return list(tiny.FAMILIES) if name is None else [name]


def check_method(name: str, on: Sequence[str], progress: Progress = silent) -> list[Result]:
    """Run every invariant on a method with its default hyperparameters, on tiny random models of the families."""
    steerer = build(parse(name)[0])[0]
    results = []
    with progress(f"check {name}", len(on) * len(INVARIANTS)) as advance:
        for family in on:
            for invariant in INVARIANTS:
                results.append(Result(family, (invariant.__doc__ or "").strip(), check(steerer, family, invariant)))
                advance(1)
    return results


def check(steerer: Steerer, family: str, invariant: Invariant) -> str | None:
    """Run one invariant on a fresh model; an exception of the method is a broken invariant."""
    lm = tiny.language_model(family)
    weights = {name: value.clone() for name, value in lm.model.state_dict().items()}
    case = Case(lm, steerer, Steering(), weights)
    try:
        case.steering = steerer.fit(case.context())
        return invariant(case)
    except Exception as error:  # a method may fail in any way; the suite says where
        return f"{type(error).__name__}: {error}"
