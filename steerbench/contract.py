"""The contract suite: invariants that every method must keep, on every family of models.

Each invariant is one function of a `Case`; it returns a sentence that says what is broken, or None.
"""

import copy
import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import LogitsProcessor

from steerbench import tiny
from steerbench.dialogue import Dialogue, user
from steerbench.errors import SteerbenchError, suggest
from steerbench.generation import activations, generate, response_logits
from steerbench.harness import Method
from steerbench.hooks import Positions, steered, watched
from steerbench.lm import Batch, LanguageModel, Tokens, by_length
from steerbench.progress import Progress, silent
from steerbench.protocol import Decoding
from steerbench.response import Response
from steerbench.reward import Reward
from steerbench.sites import Place
from steerbench.spec import MethodSpec, Part, build, hyperparameters, parse
from steerbench.steerer import FitContext
from steerbench.steering import Edit, LogitsPart, PlacedEdit, Scope, Steering

_DECODING = Decoding(max_new_tokens=5, temperature=1.0)
"""Sampled, so that candidates differ and rows finish at different tokens; each prompt has its own generator."""
_PROMPTS: tuple[Dialogue, ...] = tuple(map(user, ("a", "How do I bake bread?", "Hi there")))
_CLOSE = 1e-4
"""Largest difference of logits that float32 arithmetic in another order explains, beside the same share of them."""


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


class _Recorder(LogitsPart, LogitsProcessor):
    """Keeps the logits of every step as they leave the method's own processors."""

    def __init__(self) -> None:
        self.batches: list[list[Tensor]] = []

    def processor(self, lm: LanguageModel, prompt_ids: Tensor, mask: Tensor) -> LogitsProcessor:
        self.batches.append([])
        return self

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.batches[-1].append(scores.float().clone())
        return scores

    def rows(self) -> list[Tensor]:
        """Return the logits of each row, (steps, vocabulary), in the order of generation."""
        return [row for steps in self.batches for row in torch.stack(steps, 1)]


class _Kept(dict[object, Any]):
    """What a context shares, with a copy of each entry as it was at first."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: dict[object, Any] = {}

    def __setitem__(self, key: object, value: Any) -> None:
        self.copies[key] = copy.deepcopy(value)
        super().__setitem__(key, value)


class Output(NamedTuple):
    """A response, and the logits behind each token drawn, (tokens, vocabulary)."""

    response: Response
    logits: Tensor


@dataclass
class Case:
    """A method, fitted on a tiny random model."""

    lm: LanguageModel
    method: Method
    steering: Steering
    before: dict[str, Any]
    """What `state` was before anything was fitted."""

    def context(self, shared: dict[object, Any] | None = None) -> FitContext:
        """Return a fresh context on the tiny model."""
        examples = tiny.examples()[:16]
        kept = {} if shared is None else shared
        return FitContext(lm=self.lm, examples=examples, reward=VowelReward(), decoding=_DECODING, _shared=kept)

    def logits(self, steering: Steering) -> list[Tensor]:
        """Return the logits of fixed responses under a steering, each (tokens, vocabulary)."""
        given = [Tokens(t.prompt, (5, 6, 7)) for t in self.prompts(steering)]
        return self.forced([*given, Tokens((9,), (5, 6))], steering)

    def forced(self, tokens: Sequence[Tokens], steering: Steering) -> list[Tensor]:
        """Return the logits of given responses to given prompts, each (tokens, vocabulary)."""
        found = dict(response_logits(self.lm, tokens, replace(steering, decode=None)))
        return [found[i] for i in range(len(found))]

    def generate(self, steering: Steering, *, batch_size: int = 16, use_cache: bool = True) -> list[Response]:
        """Return sampled responses to the fixed prompts."""
        return generate(
            self.lm,
            _PROMPTS,
            steering,
            _DECODING,
            reward=VowelReward(),
            batch_size=batch_size,
            use_cache=use_cache,
        )

    def outputs(self, steering: Steering, *, batch_size: int = 16, use_cache: bool = True) -> list[Output]:
        """Return responses to the fixed prompts with the logits of every step."""
        recorder = _Recorder()
        recorded = replace(steering, logits=(*steering.logits, recorder), decode=None)
        drawn = self.generate(recorded, batch_size=batch_size, use_cache=use_cache)
        order = [i for rows in by_length(self.prompts(steering), batch_size) for i in rows]
        logits = dict(zip(order, recorder.rows(), strict=True))
        chosen = self.generate(steering, batch_size=batch_size, use_cache=use_cache) if steering.decode else drawn
        return [Output(c, logits[i][: len(d.ids)]) for i, (c, d) in enumerate(zip(chosen, drawn, strict=True))]

    def prompts(self, steering: Steering) -> list[Tokens]:
        """Return the fixed prompts as the model sees them under a steering."""
        return [self.lm.tokens(steering.apply_prompt(p)) for p in _PROMPTS]

    def state(self) -> dict[str, Any]:
        """Return all of the model that a method must leave alone, each under its name."""
        model = self.lm.model
        found: dict[str, Any] = {"the configuration": (model.config.to_dict(), model.generation_config.to_dict())}
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            found[f"the weight {name}"] = tensor.detach().clone()
            found[f"the gradient of {name}"] = (tensor.requires_grad, tensor.grad is None)
        for name, module in model.named_modules():
            found[f"the hooks of {name or 'the model'}"] = [*module._forward_pre_hooks, *module._forward_hooks]
            found[f"the forward pass of {name or 'the model'}"] = (module.forward, module.training)
        return found

    def changed(self, before: dict[str, Any]) -> str | None:
        """Return what of the model is not as it was, or None."""
        now = self.state()
        return next((name for name in {**before, **now} if not _same(before.get(name), now.get(name))), None)


# Comparing, and trying out edits


class _Probe(NamedTuple):
    """An edit and real activations to try it on, (2 rows, 4 positions, width)."""

    placed: PlacedEdit
    h: Tensor

    def __str__(self) -> str:
        return type(self.placed.edit).__name__

    @torch.no_grad()
    def start(self, h: Tensor) -> Any:
        """Return the edit's state; at `final` only the last position of a prompt arrives."""
        prompt = h[:, -1:] if self.placed.site.name == "final" else h
        return self.placed.edit.start(prompt, torch.ones_like(prompt[..., 0], dtype=torch.bool))

    @torch.no_grad()
    def edited(self, h: Tensor, state: Any) -> Tensor:
        """Return what the edit makes of activations, as the engine calls it."""
        edited: Tensor = copy.deepcopy(self.placed.edit).eval()(h, state)
        return edited

    def run(self, h: Tensor | None = None) -> Tensor:
        """Start and edit."""
        given = self.h.clone() if h is None else h
        return self.edited(given, self.start(given))


def _probes(case: Case) -> list[_Probe]:
    tokens = [Tokens((5, 6, 7, 8)), Tokens((9, 10, 11, 12))]
    return [_Probe(p, torch.stack(activations(case.lm, p.site, tokens, "all"))) for p in case.steering.edits]


class _Dtypes(TorchFunctionMode):
    """Notes the type of every tensor that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {leaf.dtype for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
        return out


def _same(a: Any, b: Any, equal: Callable[[Tensor, Tensor], bool] = torch.equal) -> bool:
    """Compare nested lists and tuples whose leaves may be tensors."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y, equal) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _close(a: Any, b: Any) -> bool:
    return _same(a, b, lambda x, y: torch.allclose(x, y, rtol=_CLOSE, atol=_CLOSE))


@contextmanager
def _failing(module: torch.nn.Module, n: int) -> Iterator[None]:
    """Raise InterruptedError when a module is called for the n-th time."""
    calls = count(1)

    def fail(*_: object) -> None:
        if next(calls) == n:
            raise InterruptedError

    handle = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def _by_place(case: Case) -> list[tuple[Place, list[PlacedEdit]]]:
    places: dict[Place, list[PlacedEdit]] = {}
    for placed in case.steering.edits:
        places.setdefault(case.lm.anatomy.place(placed.site), []).append(placed)
    return list(places.items())


def _declared(tokens: Tokens, scope: Scope, end: int) -> slice:
    """Return the columns of a scope, derived from the tokens alone."""
    ids, n = [*tokens.response, end], len(tokens.prompt)
    return slice(n - 1 if scope == "response" else 0, n if scope == "prompt" else n + ids.index(end))


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


# The invariants

Invariant = Callable[[Case], str | None]


def fit_leaves_no_trace(case: Case) -> str | None:
    """Fit leaves the model as it found it."""
    name = case.changed(case.before)
    return f"fit changed {name}; leave the model as it is, and let the engine place edits." if name else None


def fit_is_reproducible(case: Case) -> str | None:
    """The same seed gives the same bytes."""
    if case.method.fit(case.context()).digest() == case.steering.digest():
        return None
    return "two fits with the same seed differ; draw from context.generator(), never from the global generator."


def fit_keeps_what_is_shared(case: Case) -> str | None:
    """Fit does not change what the context computed once for all methods."""
    context = case.context(shared := _Kept())
    case.method.fit(context)
    if not _same(context.examples, tiny.examples()[:16]):
        return "fit changes context.examples; work on a copy."
    changed = [key for key, value in shared.items() if not _same(value, shared.copies[key])]
    return "fit writes into what the context gave it, which other methods share; work on a copy." if changed else None


def hyperparameters_round_trip(case: Case) -> str | None:
    """The hyperparameters, written as a specification, give the same method."""
    for part, steerer in zip(case.method.spec.parts, case.method.steerers, strict=True):
        values = hyperparameters(steerer)
        text = {
            key: "none" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for key, v in values.items()
        }
        again = build(parse(str(MethodSpec((Part(part.name, text),))))[0])[0]
        if again != steerer:
            return f"hyperparameters {values} come back as {hyperparameters(again)}."
    return None


def off_is_bit_equal(case: Case) -> str | None:
    """Switched off, the method gives the unsteered model's logits bit for bit."""
    off = [replace(s, **s.off) for s in case.method.steerers]
    idle, plain = case.method._replace(steerers=off).fit(case.context()), Steering()
    # while generating, a copied input of the LM head lies in memory otherwise, which can change the last bit
    if _same(case.logits(idle), case.logits(plain)) and _close(case.outputs(idle), case.outputs(plain)):
        return None
    return f"with {' and '.join(str(dict(s.off)) for s in off)} the logits differ from the unsteered model's."


def defaults_have_an_effect(case: Case) -> str | None:
    """Switched on, the method changes logits. Not asked of a gate, nor of a choice among candidates."""
    gated = any(type(p.edit).start is not Edit.start for p in case.steering.edits)
    if gated or case.steering.decode or not any(s.off for s in case.method.steerers):
        return None
    return "no logit changes." if _same(case.logits(case.steering), case.logits(Steering())) else None


def steering_leaves_no_trace(case: Case) -> str | None:
    """Generation leaves the model and the steering as they were."""
    before, digest = case.state(), case.steering.digest()
    case.outputs(case.steering)
    if name := case.changed(before):
        return f"generation changed {name}."
    return None if case.steering.digest() == digest else "generation changed the steering itself."


def error_leaves_no_trace(case: Case) -> str | None:
    """After an exception in the middle of a forward pass, too."""
    before = case.state()
    for n in (1, 2, 3):
        with suppress(InterruptedError), _failing(case.lm.anatomy.blocks[-1], n):
            case.generate(case.steering)
        if name := case.changed(before):
            return f"an exception in forward pass {n} of generation left {name} changed."
    return None


def generation_is_reproducible(case: Case) -> str | None:
    """The same seed gives the same responses and logits."""
    if _close(case.outputs(case.steering), case.outputs(case.steering)):
        return None
    return "generating twice gives different results; draw nothing, and keep nothing from one generation to the next."


def logits_are_numbers(case: Case) -> str | None:
    """No logit is NaN; single tokens may be forbidden with -inf, but not all of them."""
    if all(bool(torch.isfinite(logits.amax(-1)).all()) for _, logits in case.outputs(case.steering)):
        return None
    return "a logits processor gives NaN or forbids every token."


def batch_equals_single(case: Case) -> str | None:
    """A batch of n equals n batches of 1."""
    if _close(case.outputs(case.steering), case.outputs(case.steering, batch_size=1)):
        return None
    return "logits in a batch differ from those one by one; treat each row by itself, and leave padding out."


def cached_equals_recomputed(case: Case) -> str | None:
    """Decoding with the KV cache equals full recomputation."""
    if _close(case.outputs(case.steering), case.outputs(case.steering, use_cache=False)):
        return None
    return "logits with the KV cache differ from those without; an edit must not count positions or calls."


def teacher_forcing_equals_decoding(case: Case) -> str | None:
    """Scoring a generated response finds the logits that it was drawn from."""
    steering = replace(case.steering, decode=None)
    outputs = case.outputs(steering)
    tokens = [Tokens(t.prompt, o.response.ids) for t, o in zip(case.prompts(steering), outputs, strict=True)]
    if _close(case.forced(tokens, steering), [o.logits for o in outputs]):
        return None
    return "scoring a generated response finds other logits than decoding; an edit must not count positions or calls."


def edits_keep_their_input(case: Case) -> str | None:
    """An edit does not write into the activations it is given."""
    for probe in _probes(case):
        h = probe.h.clone()
        probe.run(h)
        if not torch.equal(probe.h, h):
            return f"{probe} writes into the activations it is given; return a new tensor."
    return None


def edits_keep_the_shape(case: Case) -> str | None:
    """An edit returns activations of the shape it was given."""
    for probe in _probes(case):
        if (shape := probe.run().shape) != probe.h.shape:
            return f"{probe} returns {tuple(shape)} for activations of {tuple(probe.h.shape)}."
    return None


def edits_treat_rows_alone(case: Case) -> str | None:
    """What an edit does to a row does not depend on the others in the batch."""
    for probe in _probes(case):
        if not _close(probe.run()[1:], probe.run(probe.h[1:])):
            return f"{probe} mixes the rows of a batch; a response would depend on the batch size."
    return None


def edits_treat_positions_alone(case: Case) -> str | None:
    """What an edit does to a position does not depend on the others in the pass."""
    for probe in _probes(case):
        state = probe.start(probe.h)
        if not _close(probe.edited(probe.h, state)[:, 1:], probe.edited(probe.h[:, 1:], state)):
            return f"{probe} mixes the positions of one pass; decoding sees them one at a time."
    return None


def edits_compute_in_float32(case: Case) -> str | None:
    """An edit computes in float32; the engine adds its result once to a half-precision state."""
    for probe in _probes(case):
        with _Dtypes() as mode:
            mode.seen.add(probe.run().dtype)
        if narrow := mode.seen & {torch.float16, torch.bfloat16}:
            return f"{probe} computes in {narrow.pop()}; stay in the float32 it is given."
    return None


def declared_positions_change(case: Case) -> str | None:
    """Only the positions of the declared scopes are edited: no padding, nothing behind the end of a response."""
    end = case.lm.end_ids[0]
    tokens = [Tokens((5, 6, 7), (8, end, 9)), Tokens((5,), (6, 7)), Tokens((5, 6), ())]
    for place, placed in _by_place(case):
        before, after = _around(case, case.lm.right_padded(tokens), place, placed)
        changed = (before != after).any(-1)
        for p in placed:
            for row, t in enumerate(tokens):
                changed[row, _declared(t, p.scope, end)] = False
        if bool(changed.any()):
            return f"activations at {placed[0].site} change outside the scope {placed[0].scope!r}."
    return None


def saving_keeps_everything(case: Case) -> str | None:
    """save -> load -> generate gives identical output."""
    with TemporaryDirectory() as folder:
        case.steering.save(Path(folder))
        again = Steering.load(Path(folder))
    if again.digest() == case.steering.digest() and _close(case.outputs(again), case.outputs(case.steering)):
        return None
    return "a saved and loaded steering behaves differently; each argument of __init__ must be kept as it came."


def half_precision_works(case: Case) -> str | None:
    """A model in bfloat16 can be fitted and steered, too."""
    case.lm.model.to(torch.bfloat16)
    half = replace(case, steering=case.method.fit(case.context()))
    return logits_are_numbers(half)


INVARIANTS: tuple[Invariant, ...] = (
    fit_leaves_no_trace,
    fit_is_reproducible,
    fit_keeps_what_is_shared,
    hyperparameters_round_trip,
    off_is_bit_equal,
    defaults_have_an_effect,
    steering_leaves_no_trace,
    error_leaves_no_trace,
    generation_is_reproducible,
    logits_are_numbers,
    batch_equals_single,
    cached_equals_recomputed,
    teacher_forcing_equals_decoding,
    edits_keep_their_input,
    edits_keep_the_shape,
    edits_treat_rows_alone,
    edits_treat_positions_alone,
    edits_compute_in_float32,
    declared_positions_change,
    saving_keeps_everything,
    half_precision_works,
)


# The suite


def families(name: str | None) -> list[str]:
    """Return the family of that name, or all. Raises SteerbenchError for an unknown one."""
    if name is not None and name not in tiny.FAMILIES:
        raise SteerbenchError(suggest("family", name, list(tiny.FAMILIES)))
    return list(tiny.FAMILIES) if name is None else [name]


def check_method(text: str, on: Sequence[str], progress: Progress = silent) -> list[Result]:
    """Run every invariant on a method such as `caa:strength=2` or `caa+static_prompt`, on tiny models."""
    specs = parse(text)
    if len(specs) > 1:
        raise SteerbenchError(f"{text!r} are {len(specs)} methods; check one at a time, or compose them with '+'.")
    method = Method(specs[0], build(specs[0]))
    results = []
    with progress(f"check {text}", len(on) * len(INVARIANTS)) as advance:
        for family in on:
            for invariant in INVARIANTS:
                results.append(Result(family, (invariant.__doc__ or "").strip(), check(method, family, invariant)))
                advance(1)
    return results


def check(method: Method, family: str, invariant: Invariant) -> str | None:
    """Run one invariant on a fresh model; an exception of the method is a broken invariant."""
    case = Case(tiny.language_model(family), method, Steering(), {})
    case.before = case.state()
    try:
        case.steering = method.fit(case.context())
        return invariant(case)
    except Exception as error:  # a method may fail in any way; the suite says where
        return _sentence(error, method)


def _sentence(error: Exception, method: Method) -> str:
    """Return what went wrong, and the line of the method's own file."""
    if isinstance(error, SteerbenchError):
        return str(error)
    files = {inspect.getfile(type(s)) for s in method.steerers}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
