"""Methods for the contract suite: those that must pass, and for each invariant those that are broken in just that way.

Most of what is broken are mistakes that other steering libraries make, or made, without a word.
"""

import textwrap

HEAD = '''
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import LogitsProcessor

from steerbench import Steerer, Steering
from steerbench.data import Turn
from steerbench.edits import DecodePart, Edit, LogitsPart, PlacedEdit, PromptPart, Site
from steerbench.learn import contrast, difference_of_means


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


def constant(named: str, edited: str) -> str:
    """Return a method whose edit names one constant and adds perhaps another."""
    more = overriding("Shift", {"constant(self)": f"return {named}", "forward(self, h, state)": f"return {edited}"})
    return method("return self.place(Own(self.vector(context), self.strength))", more)


def bias(call: str = "", *, processor: str = "") -> str:
    """Return a method whose logits processor has these bodies."""
    more = overriding("Bias", {"processor(self, lm, prompt_ids, mask)": processor, "__call__(self, ids, scores)": call})
    return method("return Steering(logits=(Own(self.strength),))", more)


def overriding(base: str, bodies: dict[str, str]) -> str:
    """Return a class that overrides functions of another one; what is empty stays as it is."""
    functions = [f"def {head}:\n{textwrap.indent(textwrap.dedent(b), '    ')}" for head, b in bodies.items() if b]
    return f"class Own({base}):\n" + textwrap.indent("\n".join(functions) or "pass", "    ")


def guided(dialogue: str) -> str:
    """Return a method whose logits processor asks the guide about each response so far, behind some dialogue."""
    more = """
        class Guided(LogitsPart):
            def __init__(self, strength):
                self.strength = strength
            def processor_in(self, context):
                return Asking(self.strength, context)

        class Asking(LogitsProcessor):
            def __init__(self, strength, context):
                self.strength, self.context = strength, context
            def __call__(self, ids, scores):
                new = ids[:, self.context.prompt_ids.shape[1]:].tolist()
                texts = [self.context.lm.cut(row).text for row in new]
                rewards = self.context.reward.score([WHOSE for i in range(len(texts))], texts)
                return scores + self.strength * rewards[:, None] * torch.arange(scores.shape[-1]).remainder(7)
        """
    return method("return Steering(logits=(Guided(self.strength),))", more.replace("WHOSE", dialogue))


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
    "guide_on_prefixes": guided("self.context.dialogues[i]"),
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
    "names_its_constant": constant("self.strength * self.vector", "h + self.strength * self.vector"),
    "guided": method(
        "return Steering(logits=(Guide(self.strength),))",
        """
        class Guide(LogitsPart):
            def __init__(self, strength):
                self.strength = strength
            def processor_in(self, context):
                liked = context.reward.score(context.dialogues, ["aeiou"] * len(context.dialogues))
                return Guided(context, self.strength * liked[:, None])
        class Guided(LogitsProcessor):
            def __init__(self, context, weights):
                self.context, self.weights = context, weights
            def __call__(self, ids, scores):
                mask = self.context.mask
                mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
                positions = (mask.cumsum(1) - 1).clamp(min=0)
                with self.context.steered(ids, mask):
                    out = self.context.lm.model(ids, attention_mask=mask, position_ids=positions, use_cache=False)
                return scores + self.weights * out.logits[:, -1]
        """,
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
        "guide_of_the_first_dialogue": guided("self.context.dialogues[0]"),
    },
    "refilled_equals_alone": {
        "keeps_its_state_itself": edit(
            "return h + self.strength * self.mean if len(h) == len(self.mean) else h",
            start="self.mean = (prompt * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]",
        ),
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
    "constant_is_what_is_added": {
        "constant_is_longer": constant("self.strength * self.vector", "h + self.strength * self.vector / 9"),
        "constant_of_a_gate": constant(
            "self.strength * self.vector", "h + self.strength * (h @ self.vector).tanh()[..., None] * self.vector"
        ),
        "constant_is_a_number": constant(
            "self.strength * self.vector.mean()", "h + self.strength * self.vector.mean()"
        ),
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
        "refilled_equals_alone",
        "cached_equals_recomputed",
        "teacher_forcing_equals_decoding",
        "saving_keeps_everything",
        "half_precision_works",
    },
    "start_reads_padding": {"refilled_equals_alone", "teacher_forcing_equals_decoding"},
    "keeps_its_state_itself": set(),
    "single_token_is_skipped": {"teacher_forcing_equals_decoding"},
    "last_column_is_the_prompts_end": set(),
    "in_place": {"declared_positions_change", "teacher_forcing_equals_decoding"},
    "one_value_for_all": set(),
    "first_row_only": {"batch_equals_single", "refilled_equals_alone"},
    "mean_of_positions": {"cached_equals_recomputed", "teacher_forcing_equals_decoding"},
    "casts_in_between": set(),
    "constant_is_a_number": set(),
    "in_place_beyond_the_scope": {"edits_keep_their_input", "teacher_forcing_equals_decoding"},
    "set_behind_the_constructor": set(),
    "mixes_types": set(),
}
"""One way to break each invariant -> what else breaks, because it is another view of the same mistake."""


def home_of(name: str) -> tuple[str, str]:
    """Return the invariant that a method breaks, and its file."""
    return next((invariant, cases[name]) for invariant, cases in BROKEN.items() if name in cases)
