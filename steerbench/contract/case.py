"""What the contract suite works with: a method on a tiny random model, and ways to look at both."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import LogitsProcessor

from steerbench.bench.method import Method
from steerbench.contract import tiny
from steerbench.data.dialogue import Dialogue, user
from steerbench.decoding import Decoding
from steerbench.engine.activations import activations
from steerbench.engine.generate import Draws, generate
from steerbench.engine.hooks import watched
from steerbench.engine.install import steered
from steerbench.engine.logits import response_logits
from steerbench.engine.positions import Positions
from steerbench.engine.prompting import prompted
from steerbench.learn.context import FitContext
from steerbench.models.language_model import Batch, LanguageModel, Tokens
from steerbench.models.response import Response
from steerbench.models.sites import Place
from steerbench.steering.parts import LogitsPart, PerPosition, PlacedEdit, Scope
from steerbench.steering.steering import Steering

_DECODING = Decoding(max_new_tokens=5, temperature=1.0)
"""Sampled, so that candidates differ and rows finish at different tokens; each prompt has its own generator."""
_PROMPTS: tuple[Dialogue, ...] = tuple(
    map(user, ("a", "How do I bake bread?", "Hi there", "Why?", "Tell me more, please.", "No"))
)
_CLOSE = 1e-4
"""Largest difference of logits that float32 arithmetic in another order explains, beside the same share of them."""


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


class Kept(dict[object, Any]):
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
    seed: int = 0
    """Of the fit."""
    known: dict[str, Any] = field(default_factory=dict)
    """What is computed once for all invariants that look at this fit."""

    @classmethod
    def fitted(cls, method: Method, family: str, seed: int = 0) -> "Case":
        """Fit a method on a new model of a family."""
        case = cls(tiny.language_model(family), method, Steering(), {}, seed)
        case.before = case.state()
        case.steering = method.fit(case.context())
        return case

    def untouched(self) -> "Case":
        """Return the case with a copy of the steering, for one invariant to use up; what is known is shared."""
        return replace(self, steering=copy.deepcopy(self.steering))

    def steered(self) -> "list[Output]":
        """Return the outputs under the steering, generated once."""
        if "steered" not in self.known:
            self.known["steered"] = self.outputs(self.steering)
        return list(self.known["steered"])

    def unsteered(self) -> list[Tensor]:
        """Return the logits without the steering, computed once."""
        if "unsteered" not in self.known:
            self.known["unsteered"] = self.logits(Steering())
        return list(self.known["unsteered"])

    def context(self, shared: dict[object, Any] | None = None) -> FitContext:
        """Return a fresh context on the tiny model."""
        examples = tiny.examples()[:16]
        kept = {} if shared is None else shared
        return FitContext(
            lm=self.lm,
            examples=examples,
            reward=tiny.MeanCode(),
            seed=self.seed,
            decoding=_DECODING,
            _shared=kept,
        )

    def logits(self, steering: Steering) -> list[Tensor]:
        """Return the logits of fixed responses under a steering, each (tokens, vocabulary)."""
        letters = self.lm.text_tokens("toe").prompt  # which the guide finds in some of the prompts
        given = [Tokens(t.prompt, letters) for t in self.prompts(steering)]
        return self.forced([*given, Tokens((9,), (5, 6))], steering)

    def forced(self, tokens: Sequence[Tokens], steering: Steering) -> list[Tensor]:
        """Return the logits of given responses to given prompts, each (tokens, vocabulary)."""
        dialogues = [*_PROMPTS, user("")][: len(tokens)]
        given = replace(steering, decode=None)
        found = dict(response_logits(self.lm, tokens, given, dialogues=dialogues, reward=tiny.SharedLetters()))
        return [found[i] for i in range(len(found))]

    def generate(self, steering: Steering, *, batch_size: int = 16, use_cache: bool = True) -> list[Response]:
        """Return sampled responses to the fixed prompts."""
        return generate(
            self.lm,
            _PROMPTS,
            steering,
            _DECODING,
            reward=tiny.SharedLetters(),
            batch_size=batch_size,
            use_cache=use_cache,
        )

    def outputs(self, steering: Steering, *, batch_size: int = 16, use_cache: bool = True) -> list[Output]:
        """Return responses to the fixed prompts with the logits of every step."""
        recorder = _Recorder()
        recorded = replace(steering, logits=(*steering.logits, recorder), decode=None)
        drawn = self.generate(recorded, batch_size=batch_size, use_cache=use_cache)
        order = [i for rows in self.lm.batches(self.prompts(steering), batch_size) for i in rows]
        logits = dict(zip(order, recorder.rows(), strict=True))
        chosen = self.generate(steering, batch_size=batch_size, use_cache=use_cache) if steering.decode else drawn
        return [Output(c, logits[i][: len(d.ids)]) for i, (c, d) in enumerate(zip(chosen, drawn, strict=True))]

    def turns(self, steering: Steering, batch_size: int) -> list[Output]:
        """Return responses and logits where responses end early, and those that wait take the places of others."""
        seen: dict[int, list[Tensor]] = {}

        def observe(row: int, scores: Tensor) -> None:
            seen.setdefault(row, []).append(scores.clone())

        alone, guide = replace(steering, decode=None), tiny.SharedLetters()
        with ending_early(self.lm):
            draws = Draws(self.lm, alone, _DECODING, guide, True, [("turns",)], observe)
            responses = draws.run(_PROMPTS, batch_size)
        return [Output(response, torch.stack(seen[row])) for row, response in enumerate(responses)]

    def prompts(self, steering: Steering) -> list[Tokens]:
        """Return the fixed prompts as the model sees them under a steering."""
        return [self.lm.tokens(p) for p in prompted(self.lm, steering, _PROMPTS)]

    def state(self) -> dict[str, Any]:
        """Return all of the model that a method must leave alone, each under its name."""
        model = self.lm.model
        found: dict[str, Any] = {"the configuration": (model.config.to_dict(), model.generation_config.to_dict())}
        found["the global random generator (draw from context.generator())"] = torch.get_rng_state()
        found["the unsteered logits"] = self.logits(Steering())
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
        return next((name for name in {**before, **now} if not same(before.get(name), now.get(name))), None)


class Probe(NamedTuple):
    """An edit and real activations to try it on, (2 rows, 4 positions, width)."""

    placed: PlacedEdit
    h: Tensor

    def __str__(self) -> str:
        return type(self.placed.edit).__name__

    @torch.no_grad()
    def start(self, h: Tensor) -> Any:
        """Return the edit's state; at `final` only the last position of a prompt arrives."""
        prompt = h[:, -1:] if self.placed.site.name == "final" else h
        state = self.placed.edit.start(prompt, torch.ones_like(prompt[..., 0], dtype=torch.bool))
        if not isinstance(state, PerPosition):
            return state
        return PerPosition(torch.nn.functional.pad(state.values, (0, 0, h.shape[1] - prompt.shape[1], 0)))

    @torch.no_grad()
    def edited(self, h: Tensor, state: Any) -> Tensor:
        """Return what the edit makes of activations, as the engine calls it; `h` ends with the prompt."""
        if isinstance(state, PerPosition):
            width = state.values.shape[1]
            state = state.columns(width - h.shape[1], width)
        edited: Tensor = copy.deepcopy(self.placed.edit).eval()(h, state)
        return edited

    def run(self, h: Tensor | None = None) -> Tensor:
        """Start and edit."""
        given = self.h.clone() if h is None else h
        return self.edited(given, self.start(given))


def probes(case: Case) -> list[Probe]:
    """Return each edit of the steering with activations of its site."""
    tokens = [Tokens((5, 6, 7, 8)), Tokens((9, 10, 11, 12))]
    return [Probe(p, torch.stack(activations(case.lm, p.site, tokens, "all"))) for p in case.steering.edits]


class Dtypes(TorchFunctionMode):
    """Notes the type of every tensor that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {leaf.dtype for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
        return out


def same(a: Any, b: Any, equal: Callable[[Tensor, Tensor], bool] = torch.equal) -> bool:
    """Compare nested lists and tuples whose leaves may be tensors."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y, equal) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def close(a: Any, b: Any) -> bool:
    """Compare like `same`, up to what the order of float32 arithmetic explains."""
    return same(a, b, lambda x, y: torch.allclose(x, y, rtol=_CLOSE, atol=_CLOSE))


@contextmanager
def ending_early(lm: LanguageModel) -> Iterator[None]:
    """Let every fifth token end a response."""
    own = lm.end_ids
    lm.end_ids = sorted({*own, *range(2, lm.model.config.vocab_size, 5)})
    try:
        yield
    finally:
        lm.end_ids = own


@contextmanager
def failing(module: torch.nn.Module, n: int) -> Iterator[None]:
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


@contextmanager
def converted(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Convert a model, and give it back the tensors that it had."""
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    model.to(dtype)
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, own in buffers:
            module._buffers.update(own)


def by_place(case: Case) -> list[tuple[Place, list[PlacedEdit]]]:
    """Return the edits of the steering, grouped by their place in the model."""
    places: dict[Place, list[PlacedEdit]] = {}
    for placed in case.steering.edits:
        places.setdefault(case.lm.anatomy.place(placed.site), []).append(placed)
    return list(places.items())


def declared(tokens: Tokens, scope: Scope, end: int) -> slice:
    """Return the columns of a scope, derived from the tokens alone."""
    ids, n = [*tokens.response, end], len(tokens.prompt)
    return slice(n - 1 if scope == "response" else 0, n if scope == "prompt" else n + ids.index(end))


@torch.no_grad()
def around(case: Case, batch: Batch, place: Place, placed: Sequence[PlacedEdit]) -> tuple[Tensor, Tensor]:
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
    return before[-1].reshape(shape), after[-1].reshape(shape)  # a contest runs a pass of its own first
