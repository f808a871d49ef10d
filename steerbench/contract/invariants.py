"""The invariants of the contract suite: what every method must keep, on every family of models.

Each is one function of a `Case`; it returns a sentence that says what is broken, or None. Users read its docstring.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from steerbench.contract import tiny
from steerbench.contract.case import (
    Case,
    Dtypes,
    Kept,
    around,
    by_place,
    close,
    converted,
    declared,
    failing,
    probes,
    same,
)
from steerbench.models.language_model import Tokens
from steerbench.plugins.spec import MethodSpec, Part, build, hyperparameters, parse
from steerbench.steering.parts import Edit
from steerbench.steering.steering import Steering

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
    context = case.context(shared := Kept())
    case.method.fit(context)
    if not same(context.examples, tiny.examples()[:16]):
        return "fit changes context.examples; work on a copy."
    changed = [key for key, value in shared.items() if not same(value, shared.copies[key])]
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
    idle = case.method._replace(steerers=off).fit(case.context())
    if same(case.logits(idle), case.unsteered()) and same(case.outputs(idle), case.outputs(Steering())):
        return None
    return f"with {' and '.join(str(dict(s.off)) for s in off)} the logits differ from the unsteered model's."


def defaults_have_an_effect(case: Case) -> str | None:
    """Switched on, the method changes logits. Not asked of a gate, nor of a choice among candidates."""
    gated = any(p.gate or type(p.edit).start is not Edit.start for p in case.steering.edits)
    if gated or case.steering.decode or not any(s.off for s in case.method.steerers):
        return None
    return "no logit changes." if same(case.logits(case.steering), case.unsteered()) else None


def steering_leaves_no_trace(case: Case) -> str | None:
    """Generation leaves the model and the steering as they were."""
    before, digest = case.state(), case.steering.digest()
    case.outputs(case.steering)
    if name := case.changed(before):
        return f"generation changed {name}."
    return None if case.steering.digest() == digest else "generation changed the steering itself."


def error_leaves_no_trace(case: Case) -> str | None:
    """After an exception in the middle of a forward pass, too."""
    case.generate(Steering())  # what the engine tries out on a new model it has tried then
    before = case.state()
    for n in (1, 2, 3):
        with suppress(InterruptedError), failing(case.lm.anatomy.blocks[-1], n):
            case.generate(case.steering)
        if name := case.changed(before):
            return f"an exception in forward pass {n} of generation left {name} changed."
    return None


def generation_is_reproducible(case: Case) -> str | None:
    """The same seed gives the same responses and logits."""
    if close(case.outputs(case.steering), case.outputs(case.steering)):
        return None
    return "generating twice gives different results; draw nothing, and keep nothing from one generation to the next."


def logits_are_numbers(case: Case) -> str | None:
    """No logit is NaN; single tokens may be forbidden with -inf, but not all of them."""
    case.steered()  # the engine says what is not
    return None


def batch_equals_single(case: Case) -> str | None:
    """A batch of n equals n batches of 1."""
    if close(case.steered(), case.outputs(case.steering, batch_size=1)):
        return None
    return "logits in a batch differ from those one by one; treat each row by itself, and leave padding out."


def refilled_equals_alone(case: Case) -> str | None:
    """Rows that take the places of others in the middle of a batch are steered as in a batch of their own."""
    if close(case.turns(case.steering, 4), case.turns(case.steering, 1)):
        return None
    return "logits of rows that take the places of others differ; keep what belongs to a row in what `start` returns."


def cached_equals_recomputed(case: Case) -> str | None:
    """Decoding with the KV cache equals full recomputation."""
    if close(case.steered(), case.outputs(case.steering, use_cache=False)):
        return None
    return "logits with the KV cache differ from those without; an edit must not count positions or calls."


def teacher_forcing_equals_decoding(case: Case) -> str | None:
    """Scoring a generated response finds the logits that it was drawn from."""
    steering = replace(case.steering, decode=None)
    outputs = case.outputs(steering) if case.steering.decode else case.steered()
    tokens = [Tokens(t.prompt, o.response.ids) for t, o in zip(case.prompts(steering), outputs, strict=True)]
    if close(case.forced(tokens, steering), [o.logits for o in outputs]):
        return None
    return "scoring a generated response finds other logits than decoding; an edit must not count positions or calls."


def edits_keep_their_input(case: Case) -> str | None:
    """An edit does not write into the activations it is given."""
    for probe in probes(case):
        h = probe.h.clone()
        probe.run(h)
        if not torch.equal(probe.h, h):
            return f"{probe} writes into the activations it is given; return a new tensor."
    return None


def edits_keep_the_shape(case: Case) -> str | None:
    """An edit returns activations of the shape it was given."""
    for probe in probes(case):
        if (shape := probe.run().shape) != probe.h.shape:
            return f"{probe} returns {tuple(shape)} for activations of {tuple(probe.h.shape)}."
    return None


def edits_treat_rows_alone(case: Case) -> str | None:
    """What an edit does to a row does not depend on the others in the batch."""
    for probe in probes(case):
        if not close(probe.run()[1:], probe.run(probe.h[1:])):
            return f"{probe} mixes the rows of a batch; a response would depend on the batch size."
    return None


def edits_treat_positions_alone(case: Case) -> str | None:
    """What an edit does to a position does not depend on the others in the pass."""
    for probe in probes(case):
        state = probe.start(probe.h)
        if not close(probe.edited(probe.h, state)[:, 1:], probe.edited(probe.h[:, 1:], state)):
            return f"{probe} mixes the positions of one pass; decoding sees them one at a time."
    return None


def edits_compute_in_float32(case: Case) -> str | None:
    """An edit computes in float32; the engine adds its result once to a half-precision state."""
    for probe in probes(case):
        with Dtypes() as mode:
            mode.seen.add(probe.run().dtype)
        if narrow := mode.seen & {torch.float16, torch.bfloat16}:
            return f"{probe} computes in {narrow.pop()}; stay in the float32 it is given."
    return None


def constant_is_what_is_added(case: Case) -> str | None:
    """The constant that an edit names, which the engine adds in its place, is what the edit adds."""
    for probe in probes(case):
        constant = probe.placed.edit.constant()
        if constant is None:
            continue
        if constant.shape != probe.h.shape[-1:] or constant.dtype != torch.float32:
            kind = f"{tuple(constant.shape)}, {constant.dtype}"
            return f"{probe} names a constant that is {kind}; it must be (width,), torch.float32."
        if not close(probe.run(), probe.h + constant):
            return f"{probe} adds something else than the constant it names; name what `forward` adds, or None."
    return None


def declared_positions_change(case: Case) -> str | None:
    """Only the positions of the declared scopes are edited: no padding, nothing behind the end of a response."""
    end = case.lm.end_ids[0]
    tokens = [Tokens((5, 6, 7), (8, end, 9)), Tokens((5,), (6, 7)), Tokens((5, 6), ())]
    for place, placed in by_place(case):
        before, after = around(case, case.lm.right_padded(tokens), place, placed)
        changed = (before != after).any(-1)
        for p in placed:
            for row, t in enumerate(tokens):
                changed[row, declared(t, p.scope, end)] = False
        if bool(changed.any()):
            return f"activations at {placed[0].site} change outside the scope {placed[0].scope!r}."
    return None


def saving_keeps_everything(case: Case) -> str | None:
    """save -> load -> generate gives identical output."""
    with TemporaryDirectory() as folder:
        case.steering.save(Path(folder))
        again = Steering.load(Path(folder))
    if again.digest() == case.steering.digest() and close(case.outputs(again), case.steered()):
        return None
    return "a saved and loaded steering behaves differently; each argument of __init__ must be kept as it came."


def half_precision_works(case: Case) -> str | None:
    """A model in bfloat16 can be fitted and steered, too."""
    with converted(case.lm.model, torch.bfloat16):
        half = replace(case, steering=case.method.fit(case.context()), known={})
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
    refilled_equals_alone,
    cached_equals_recomputed,
    teacher_forcing_equals_decoding,
    edits_keep_their_input,
    edits_keep_the_shape,
    edits_treat_rows_alone,
    edits_treat_positions_alone,
    edits_compute_in_float32,
    constant_is_what_is_added,
    declared_positions_change,
    saving_keeps_everything,
    half_precision_works,
)

UP_TO_ROUNDING = (
    batch_equals_single,
    refilled_equals_alone,
    cached_equals_recomputed,
    teacher_forcing_equals_decoding,
    edits_treat_rows_alone,
    edits_treat_positions_alone,
)
