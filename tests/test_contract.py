"""The contract suite: what must pass it, what it must catch, and what a user sees of it.

A suite that finds nothing proves nothing, so every invariant meets methods that are broken in just that way. Most of
them are mistakes that other steering libraries make, or made, without a word.
"""

import sys
import textwrap
from collections.abc import Iterable, Iterator
from itertools import combinations, cycle
from pathlib import Path

import pytest
from typer.testing import CliRunner

import steerbench
from steerbench import contract, invariants, registry, tiny
from steerbench.cli import app
from steerbench.contract import check, check_method, families
from steerbench.errors import SteerbenchError
from steerbench.invariants import INVARIANTS, batch_equals_single, fit_is_reproducible
from steerbench.method import Method
from steerbench.spec import build, parse

QUICK = {"re_control": "re_control:epochs=3", "alignez": "alignez:n_queries=4"}
"""No invariant depends on how well a value function is trained."""
METHODS = [QUICK.get(name, name) for name in steerbench.names("methods")]

HEAD = '''
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import LogitsProcessor

from steerbench import (
    DecodePart, Edit, LogitsPart, PlacedEdit, PromptPart, Site, Steerer, Steering, Turn, contrast, difference_of_means
)


class Shift(Edit):
    """Right; others override a part of it."""

    def __init__(self, vector, strength):
        super().__init__()
        self.register_buffer("vector", vector)
        self.strength = strength

    def forward(self, h, state):
        return h + self.strength * self.vector


class Bias(LogitsPart, LogitsProcessor):
    """Right; others override a part of it."""

    def __init__(self, strength):
        self.strength = strength

    def processor(self, lm, prompt_ids, mask):
        return self

    def __call__(self, ids, scores):
        return scores + self.strength * torch.arange(scores.shape[-1]).remainder(7)


@dataclass(frozen=True, kw_only=True)
class Base(Steerer):
    """What most of the methods below have in common."""

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    strength: float = 1.0

    def vector(self, context):
        return difference_of_means(contrast(context, Site("resid_post", 1), "response_mean"))

    def place(self, edit, scope="response", site=Site("resid_post", 1)):
        return Steering(edits=(PlacedEdit(site, edit, scope),))
'''


def method(fit: str, more: str = "", fields: str = "") -> str:
    """Return the file of a method: the body of its fit, classes before it, and what else stands in the class."""
    indent = textwrap.indent
    body = indent(textwrap.dedent(fields), "    ") + "\n    def fit(self, context):\n"
    body += indent(textwrap.dedent(fit), " " * 8)
    return f"{HEAD}\n{textwrap.dedent(more)}\n@dataclass(frozen=True, kw_only=True)\nclass Mine(Base):\n{body}\n"


def edit(forward: str, *, start: str = "", scope: str = "response", site: str = "resid_post.1") -> str:
    """Return a method whose edit has these bodies."""
    more = overriding("Shift", {"start(self, prompt, mask)": start, "forward(self, h, state)": forward})
    return method(f"return self.place(Own(self.vector(context), self.strength), {scope!r}, Site.parse({site!r}))", more)


def bias(call: str = "", *, processor: str = "") -> str:
    """Return a method whose logits processor has these bodies."""
    more = overriding("Bias", {"processor(self, lm, prompt_ids, mask)": processor, "__call__(self, ids, scores)": call})
    return method("return Steering(logits=(Own(self.strength),))", more)


def overriding(base: str, bodies: dict[str, str]) -> str:
    """Return a class that overrides functions of another one; what is empty stays as it is."""
    functions = [f"def {head}:\n{textwrap.indent(textwrap.dedent(b), '    ')}" for head, b in bodies.items() if b]
    return f"class Own({base}):\n" + textwrap.indent("\n".join(functions) or "pass", "    ")


RIGHT = "return self.place(Shift(self.vector(context), self.strength))"
CHOICE = """
    class Choice(DecodePart):
        def __init__(self, candidates):
            self.candidates = candidates
        def choose(self, dialogue, candidates, reward):
            {}
"""
CHOOSE = "return Steering(decode=Choice(self.candidates))"
CANDIDATES = "candidates: int = 4\noff: ClassVar[Mapping[str, Any]] = {'candidates': 1}"

GOOD = {
    "learns_nothing": method(
        "return Steering(prompt=(Polite(self.text),))",
        """
        class Polite(PromptPart):
            def __init__(self, text):
                self.text = text
            def __call__(self, dialogue):
                return (Turn("system", self.text), *dialogue) if self.text else dialogue
        """,
        "text: str = 'Be kind: \"say\" a+b, c = 1.'\noff: ClassVar[Mapping[str, Any]] = {'text': ''}",
    ),
    "best_of_two": method(
        CHOOSE,
        CHOICE.format("return int(reward.score([dialogue] * len(candidates), candidates).argmax())"),
        CANDIDATES,
    ),
    "logits_bias": bias(),
    "logits_of_the_prompt": bias(
        "return scores - self.strength * self.seen",
        processor="""
        one = Own(self.strength)
        one.seen = torch.zeros(len(prompt_ids), 259).scatter_add(1, prompt_ids, mask.float()).clamp(max=1)
        return one
        """,
    ),
    "gate_per_row": edit(
        "return h + self.strength * state * self.vector",
        start="""
        last = mask.shape[1] - 1 - mask.flip(1).long().argmax(1)
        return (prompt[torch.arange(len(prompt)), last] @ self.vector > 0).float()[:, None, None]
        """,
    ),
    "mean_of_the_prompt": edit(
        "return h + self.strength * state",
        start="return (prompt * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]",
        scope="all",
    ),
    "gradient_at_inference": edit(
        """
        with torch.enable_grad():
            x = h.detach().requires_grad_()
            step, = torch.autograd.grad((x * self.vector).sum().sin(), x)
        return h + self.strength * step / step.norm(dim=-1, keepdim=True)
        """.replace("(x * self.vector).sum().sin()", "(x @ self.vector).sin().sum()")
    ),
    "two_edits_and_a_bias": method(
        """
        edits = [PlacedEdit(Site(name, i), Shift(self.vector(context), self.strength), "all")
                 for name, i in (("attn_out", 0), ("resid_post", 1), ("final", None))]
        return Steering(edits=tuple(edits), logits=(Bias(self.strength),))
        """
    ),
    "learns_from_rollouts": method(
        """
        rollouts = context.rollouts()
        site = Site("resid_post", 1)
        states = torch.stack(context.activations(site, [r.tokens for r in rollouts], "response_mean"))
        rewards = torch.tensor([r.reward for r in rollouts])
        return self.place(Shift((rewards - rewards.mean()) @ states, self.strength))
        """
    ),
}

BROKEN: dict[str, dict[str, str]] = {
    "fit_leaves_no_trace": {
        "changes_a_weight": method("context.lm.model.get_input_embeddings().weight.data[7] += 1\n" + RIGHT),
        "leaves_a_hook": method("context.lm.anatomy.blocks[1].register_forward_hook(lambda *a: None)\n" + RIGHT),
        "patches_forward": method(
            "b = context.lm.anatomy.blocks[1]\nforward = b.forward\nb.forward = lambda *a, **k: forward(*a, **k)\n"
            + RIGHT
        ),
        "wraps_a_layer": method(
            "b = context.lm.anatomy.blocks\nb[1] = Wrapped(b[1])\n" + RIGHT,
            """
            class Wrapped(torch.nn.Module):
                def __init__(self, inner):
                    super().__init__()
                    self.inner = inner
                    self.__dict__.update({k: v for k, v in vars(inner).items() if k not in vars(self)})
                def forward(self, *args, **kwargs):
                    return self.inner(*args, **kwargs)
            """,
        ),
        "leaves_training_mode": method("context.lm.model.train()\n" + RIGHT),
        "leaves_gradients_on": method("context.lm.model.requires_grad_(True)\n" + RIGHT),
        "changes_the_configuration": method("context.lm.model.generation_config.do_sample = True\n" + RIGHT),
    },
    "fit_is_reproducible": {
        "global_generator": method("return self.place(Shift(torch.randn(32), self.strength))"),
        "module_random": method("return self.place(Shift(self.vector(context) * random.random(), self.strength))"),
    },
    "fit_keeps_what_is_shared": {
        "writes_into_activations": method(
            "chosen = [p.chosen for p in context.pairs()]\n"
            "for h in context.activations(Site('resid_post', 1), chosen, 'last_response'):\n"
            "    h /= h.norm()\n" + RIGHT
        ),
        "takes_pairs_away": method("pairs = context.pairs()\n" + RIGHT + " if pairs.pop() else None"),
        "sorts_the_examples": method("context.examples.reverse()\n" + RIGHT),
    },
    "hyperparameters_round_trip": {
        "no_json": method(RIGHT, fields="dtype: torch.dtype = torch.float32"),
        "not_to_be_given_as_text": method(RIGHT, fields="layers: tuple[int, ...] = (1, 2)"),
        "logic_in_construction": method(
            RIGHT, fields="def __post_init__(self):\n    object.__setattr__(self, 'strength', self.strength + 1)"
        ).replace('{"strength": 0.0}', '{"strength": -1.0}'),
    },
    "off_is_bit_equal": {
        "rounds": edit("return (h.norm(dim=-1, keepdim=True) * (h / h.norm(dim=-1, keepdim=True))) + self.strength"),
        "does_not_switch_off": edit("return h + (self.strength + 0.01) * self.vector"),
        "no_such_hyperparameter": method(RIGHT).replace('{"strength": 0.0}', '{"strenght": 0.0}'),
        "no_off": method(RIGHT).replace('    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}\n', ""),
        "empty_off": method(RIGHT).replace('{"strength": 0.0}', "{}"),
    },
    "defaults_have_an_effect": {
        "forgets_the_vector": edit("return h + self.strength * (self.vector - self.vector)"),
        "returns_nothing": method("return Steering()"),
    },
    "steering_leaves_no_trace": {
        "processor_leaves_a_hook": bias(
            processor="lm.anatomy.blocks[1].register_forward_hook(lambda *a: None)\nreturn self"
        ),
        "processor_changes_a_weight": bias(processor="lm.model.lm_head.weight.data[0] = 0\nreturn self"),
        "processor_changes_the_steering": bias(
            processor="old, self.strength = self.strength, abs(self.strength)\nself.strength += 1e-9\nreturn Bias(old)"
        ),
    },
    "error_leaves_no_trace": {
        "removes_its_hook_without_finally": bias(
            """
            hook = self.lm.model.register_forward_hook(lambda *a: None)
            self.lm.model(ids)
            hook.remove()
            return super().__call__(ids, scores)
            """,
            processor="one = Own(self.strength)\none.lm = lm\nreturn one",
        ),
    },
    "generation_is_reproducible": {
        "noise_in_the_edit": edit("return h + self.strength * torch.randn_like(h)"),
        "noise_in_the_logits": bias("return scores + self.strength * torch.rand(scores.shape)"),
        "counts_batches": bias(processor="self.n = getattr(self, 'n', 0) + 1\nreturn Bias(self.n * self.strength)"),
        "prompts_in_turn": method(
            "return Steering(prompt=(Turns(),) if self.strength else ())",
            """
            class Turns(PromptPart):
                n = 0
                def __call__(self, dialogue):
                    self.n += 1
                    return (Turn("system", "x" * (self.n % 5)), *dialogue)
            """,
        ),
        "chooses_at_random": method(CHOOSE, CHOICE.format("return random.randrange(len(candidates))"), CANDIDATES),
    },
    "logits_are_numbers": {
        "edit_gives_nan": edit("return h * float('nan') if self.strength else h"),
        "processor_gives_nan": bias("return scores * float('nan') if self.strength else scores"),
        "processor_forbids_all": bias("return scores - float('inf') if self.strength else scores"),
    },
    "batch_equals_single": {
        "first_row_of_the_logits": bias("scores = scores.clone()\nscores[0, :50] += self.strength\nreturn scores"),
        "forbids_padding_too": bias(
            "return scores.index_fill(1, self.seen.unique(), -1e3) if self.strength else scores",
            processor="one = Own(self.strength)\none.seen = prompt_ids[:1]\nreturn one",
        ),
        "mixes_large_batches": edit(
            "return h + self.strength * (h.mean(0, keepdim=True) if len(h) > 4 else self.vector)"
        ),
        "start_reads_padding": edit("return h + self.strength * state", start="return prompt.mean(1, keepdim=True)"),
    },
    "cached_equals_recomputed": {
        "single_token_is_generated": edit(
            "return h + self.strength * self.vector if h.shape[1] == 1 else h", scope="all"
        ),
        "single_token_is_skipped": edit(
            "return h if h.shape[1] == 1 else h + self.strength * self.vector", scope="all"
        ),
        "counts_calls": edit(
            """
            self.calls = getattr(self, "calls", 0) + 1
            return h + self.strength * self.vector if self.calls == 1 else h
            """
        ),
    },
    "teacher_forcing_equals_decoding": {
        "counts_calls_at_the_head": edit(
            """
            self.calls = getattr(self, "calls", 0) + 1
            return h + self.strength * self.vector if self.calls == 1 else h
            """,
            site="final",
        ),
        "last_column_is_the_prompts_end": edit("return h + self.strength * state", start="return prompt[:, -1:]"),
    },
    "edits_keep_their_input": {
        "in_place": edit("h += self.strength * self.vector\nreturn h"),
        "in_place_in_start": edit(
            "return h + self.strength * self.vector", start="prompt *= 1 + self.strength\nreturn None"
        ),
    },
    "edits_keep_the_shape": {
        "one_value_for_all": edit("return h[..., :1] + self.strength * self.vector[:1] if self.strength else h"),
        "one_position_for_all": edit("return h[:, -1:] + self.strength * self.vector if self.strength else h"),
    },
    "edits_treat_rows_alone": {
        "first_row_only": edit("h = h.clone()\nh[0] += self.strength * self.vector\nreturn h"),
        "mean_of_the_batch": edit("return h + self.strength * h.mean(0, keepdim=True)"),
        "state_of_the_first_row": edit("return h + self.strength * state", start="return prompt[0, -1]"),
    },
    "edits_treat_positions_alone": {
        "mean_of_positions": edit("return h + self.strength * h.mean(1, keepdim=True)"),
        "first_position_of_the_pass": edit("h = h.clone()\nh[:, 0] += self.strength * self.vector\nreturn h"),
    },
    "edits_compute_in_float32": {
        "returns_half": edit("return (h + self.strength * self.vector).half() if self.strength else h"),
        "casts_in_between": edit("return h + (self.strength * self.vector).bfloat16().float()"),
    },
    "declared_positions_change": {
        "in_place_beyond_the_scope": edit("h += self.strength * self.vector\nreturn h"),
        "start_changes_the_prompt": edit("return h", start="prompt += self.strength * self.vector\nreturn None"),
    },
    "saving_keeps_everything": {
        "constructor_changes_its_argument": method(
            "return self.place(Own(self.vector(context), self.strength))",
            """
            class Own(Shift):
                def __init__(self, vector, strength):
                    super().__init__(vector.mul_(2), strength)
            """,
        ),
        "set_behind_the_constructor": method(
            """
            edit = Shift(self.vector(context), self.strength)
            edit.vector = edit.vector.flip(0)
            edit.forward = lambda h, state: h - edit.strength * edit.vector
            return self.place(edit)
            """
        ),
        "argument_not_kept": method(
            "return self.place(Own(self.vector(context), self.strength))",
            """
            class Own(Shift):
                def __init__(self, direction, strength):
                    super().__init__(direction, strength)
            """,
        ),
        "class_inside_a_function": method(
            "class Local(Shift):\n    pass\nreturn self.place(Local(self.vector(context), self.strength))"
        ),
    },
    "half_precision_works": {
        "mixes_types": method(
            "return self.place(Shift(self.vector(context) @ context.lm.model.lm_head.weight.T[:, :32], self.strength))"
        ),
        "numpy_has_no_bfloat16": method("context.lm.model.lm_head.weight.detach().numpy()\n" + RIGHT),
    },
}
"""Invariant -> what breaks it."""


COMPANIONS: dict[str, set[str]] = {
    "changes_a_weight": set(),
    "global_generator": {"fit_leaves_no_trace"},
    "writes_into_activations": set(),
    "logic_in_construction": set(),
    "does_not_switch_off": set(),
    "forgets_the_vector": set(),
    "processor_leaves_a_hook": {"error_leaves_no_trace"},
    "removes_its_hook_without_finally": set(),
    "chooses_at_random": {"batch_equals_single", "cached_equals_recomputed", "saving_keeps_everything"},
    "processor_forbids_all": {  # all that generate: the engine refuses to
        "defaults_have_an_effect",
        "steering_leaves_no_trace",
        "generation_is_reproducible",
        "batch_equals_single",
        "cached_equals_recomputed",
        "teacher_forcing_equals_decoding",
        "saving_keeps_everything",
        "half_precision_works",
    },
    "start_reads_padding": {"teacher_forcing_equals_decoding"},
    "single_token_is_skipped": {"teacher_forcing_equals_decoding"},
    "last_column_is_the_prompts_end": set(),
    "in_place": {"declared_positions_change", "teacher_forcing_equals_decoding"},
    "one_value_for_all": set(),
    "first_row_only": {"batch_equals_single"},
    "mean_of_positions": {"cached_equals_recomputed", "teacher_forcing_equals_decoding"},
    "casts_in_between": set(),
    "in_place_beyond_the_scope": {"edits_keep_their_input", "teacher_forcing_equals_decoding"},
    "set_behind_the_constructor": set(),
    "mixes_types": set(),
}
"""One way to break each invariant -> what else breaks, because it is another view of the same mistake."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the plugins of a test."""
    monkeypatch.setattr(registry, "_files", {})
    yield
    for name in [name for name in sys.modules if name.startswith("steerbench_plugins.")]:
        del sys.modules[name]


def add(folder: Path, name: str, source: str) -> Method:
    """Register a method from a file."""
    path = folder / f"{name}.py"
    path.write_text(source)
    registry.add_plugin(path)
    return named(name)


def named(text: str) -> Method:
    (spec,) = parse(text)
    return Method(spec, build(spec))


def problems(method: Method, family: str = "llama") -> dict[str, str]:
    """Return the invariants that a method breaks, each with the sentence that says how."""
    found = {invariant.__name__: check(method, family, invariant) for invariant in INVARIANTS}
    return {name: problem for name, problem in found.items() if problem}


def home_of(name: str) -> tuple[str, str]:
    """Return the invariant that a method breaks, and its file."""
    return next((invariant, cases[name]) for invariant, cases in BROKEN.items() if name in cases)


def in_turn(names: Iterable[str]) -> list[tuple[str, str]]:
    """Give each name a family, one after the other."""
    return list(zip(names, cycle(tiny.FAMILIES), strict=False))


# What passes


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_every_invariant(name: str, family: str) -> None:
    assert problems(named(name), family) == {}


@pytest.mark.parametrize(("pair", "on"), in_turn(map("+".join, combinations(METHODS, 2))))
def test_every_pair_of_methods_composes(pair: str, on: str) -> None:
    assert problems(named(pair), on) == {}


def test_a_fault_that_not_every_fit_shows_is_found(tmp_path: Path) -> None:
    """Rounding may be to blame for what one fit shows; a fault that another one shows, too, is a fault."""
    mixing = edit("return h + self.strength * h.mean(0, keepdim=True) if self.strength > 0 else h")
    source = mixing.replace("self.vector(context), self.strength", "self.vector(context), WHEN")
    assert source.count("WHEN") == 1
    for name, when, broken in (("often", "context.seed in (0, 2)", True), ("once", "context.seed == 0", False)):
        found = add(tmp_path, name, source.replace("WHEN", f"self.strength * float({when})"))
        assert (check(found, "llama", batch_equals_single) is not None) == broken


@pytest.mark.parametrize(("name", "on"), in_turn(GOOD))
def test_methods_of_every_kind_pass(tmp_path: Path, name: str, on: str) -> None:
    """Each part of a steering, state of one generation, and gradients at generation time."""
    assert problems(add(tmp_path, name, GOOD[name]), on) == {}


def test_hyperparameters_and_compositions_can_be_checked() -> None:
    results = check_method('caa:scope=all:strength=0.5+static_prompt:text="a, b"', ["gpt2"])
    assert [r.problem for r in results] == [None] * len(INVARIANTS)
    assert {r.family for r in results} == {"gpt2"}


def test_only_one_method_at_a_time() -> None:
    with pytest.raises(SteerbenchError, match="'caa,unsteered' are 2 methods; check one at a time"):
        check_method("caa,unsteered", ["llama"])


# What is caught


def test_every_invariant_meets_methods_that_break_it() -> None:
    names = [name for cases in BROKEN.values() for name in cases]
    assert list(BROKEN) == [invariant.__name__ for invariant in INVARIANTS]
    assert [home_of(name)[0] for name in COMPANIONS] == list(BROKEN)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", [name for cases in BROKEN.values() for name in cases])
def test_what_is_broken_is_caught(tmp_path: Path, name: str) -> None:
    caught_by, source = home_of(name)
    broken = add(tmp_path, name, source)
    missed = [on for on in ("llama", "gpt2") if not check(broken, on, vars(invariants)[caught_by])]
    assert missed == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for cases in BROKEN.values() for name in cases])
def test_what_is_broken_is_caught_in_every_family(tmp_path: Path, name: str) -> None:
    caught_by, source = home_of(name)
    broken = add(tmp_path, name, source)
    missed = [on for on in tiny.FAMILIES if not check(broken, on, vars(invariants)[caught_by])]
    assert missed == []


@pytest.mark.parametrize("name", COMPANIONS)
def test_only_what_is_broken_is_named(tmp_path: Path, name: str) -> None:
    invariant, source = home_of(name)
    assert set(problems(add(tmp_path, name, source))) == {invariant} | COMPANIONS[name]


@pytest.mark.parametrize(
    "name",
    ["first_row_only", "first_row_of_the_logits", "mean_of_the_batch", "start_reads_padding", "state_of_the_first_row"],
)
def test_a_weak_edit_that_changes_no_token_is_caught_too(tmp_path: Path, name: str, family: str) -> None:
    """Tokens alone would show almost none of these: a hundredth of the vector rarely changes one."""
    weak = add(tmp_path, name, home_of(name)[1].replace("strength: float = 1.0", "strength: float = 0.01"))
    assert check(weak, family, batch_equals_single)


# What it says


@pytest.mark.parametrize(
    ("source", "invariant", "expected"),
    [
        (method("raise ValueError('too few pairs')"), "half_precision_works", "ValueError: too few pairs (mine.py:"),
        (method("return None"), "fit_leaves_no_trace", "fit of Mine returned None; it must return a Steering."),
        (edit("raise KeyError('head 9')"), "batch_equals_single", "KeyError: 'head 9' (mine.py:"),
        (
            method(CHOOSE, CHOICE.format("return 7"), CANDIDATES),
            "batch_equals_single",
            "IndexError: list index out of range",
        ),
        (BROKEN["logits_are_numbers"]["edit_gives_nan"], "logits_are_numbers", "the edit Own at resid_post.1 gave NaN"),
        (
            BROKEN["off_is_bit_equal"]["no_off"],
            "off_is_bit_equal",
            "AttributeError: 'Mine' object has no attribute 'off'",
        ),
        (
            BROKEN["fit_leaves_no_trace"]["leaves_a_hook"],
            "fit_leaves_no_trace",
            "fit changed the hooks of model.layers.1; leave the model as it is, and let the engine place edits.",
        ),
        (
            BROKEN["edits_compute_in_float32"]["casts_in_between"],
            "edits_compute_in_float32",
            "Own computes in torch.bfloat16; stay in the float32 it is given.",
        ),
        (
            BROKEN["hyperparameters_round_trip"]["no_json"],
            "hyperparameters_round_trip",
            "Mine: a hyperparameter is no plain JSON value: Object of type dtype is not JSON serializable.",
        ),
    ],
)
def test_a_problem_is_one_sentence(tmp_path: Path, source: str, invariant: str, expected: str) -> None:
    problem = check(add(tmp_path, "mine", source), "llama", vars(invariants)[invariant])
    assert problem is not None
    assert problem.startswith(expected)
    assert "\n" not in problem


def test_families() -> None:
    assert families(None) == list(tiny.FAMILIES)
    assert families("gpt2") == ["gpt2"]
    with pytest.raises(SteerbenchError, match=r"^unknown family 'lama'. Did you mean 'llama'\? Known: "):
        families("lama")


# The command


def run(*arguments: object) -> tuple[int, str]:
    """Return the exit code and what was printed, on one line."""
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_command_on_a_file_that_passes(tmp_path: Path) -> None:
    add(tmp_path, "mine", GOOD["logits_bias"])
    code, text = run(tmp_path / "mine.py", "--family", "qwen2")
    n = len(INVARIANTS)
    assert code == 0
    assert text.count("holds ") == n
    assert text.endswith(f"mine: {n} of {n} checks hold, {n} invariants on 1 model families.")


def test_command_on_a_broken_file(tmp_path: Path) -> None:
    add(tmp_path, "mine", BROKEN["fit_is_reproducible"]["global_generator"])
    code, text = run(tmp_path / "mine.py", "--family", "gpt2")
    n = len(INVARIANTS)
    assert code == 2
    assert "broken The same seed gives the same bytes. gpt2: two fits with the same seed differ; draw from" in text
    assert text.count("broken ") == 2  # the state of the global generator, too
    assert text.endswith(f"mine: {n - 2} of {n} checks hold, {n} invariants on 1 model families.")
    assert "Traceback" not in text


def test_command_on_all_families_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "INVARIANTS", (fit_is_reproducible,))
    add(tmp_path, "mine", method("raise ValueError('too few pairs')"))
    code, text = run(tmp_path / "mine.py")
    assert code == 2
    assert f"{', '.join(tiny.FAMILIES)}: ValueError: too few pairs (mine.py:" in text
    assert text.endswith(f"mine: 0 of {len(tiny.FAMILIES)} checks hold, 1 invariants on 11 model families.")


@pytest.mark.parametrize(
    ("argument", "more", "expected"),
    [
        ("caa", ["--family", "lama"], "error: unknown family 'lama'. Did you mean 'llama'? Known: "),
        ("missing.py", [], "missing.py does not exist; check the path."),
        ("caaa", [], "error: unknown method 'caaa'. Did you mean 'caa'? Known: "),
        ("caa:strenth=2", [], "error: unknown hyperparameter of 'caa' 'strenth'. Did you mean 'strength'?"),
        ("caa,unsteered", [], "error: 'caa,unsteered' are 2 methods; check one at a time"),
    ],
)
def test_command_on_a_mistake(argument: str, more: list[str], expected: str) -> None:
    code, text = run(argument, *more)
    assert code == 2
    assert expected in text


def test_command_on_a_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from steerbench import Task\n\n\nclass Mine(Task):\n    def parse(self, row):\n        raise ValueError\n"
    )
    code, text = run(path)
    assert code == 2
    assert text.endswith("is a task; the contract suite checks methods.")


def test_command_on_a_composition() -> None:
    code, text = run("caa:strength=2+static_prompt", "--family", "opt")
    assert code == 0
    assert text.endswith("invariants on 1 model families.")
