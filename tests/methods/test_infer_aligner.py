"""InferAligner: shift and gates against their formulas, with an aligned model that is another one and the same one."""

import importlib
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from steerbench import Decoding, Example, FitContext, LanguageModel, SteerbenchError, Steering, load
from steerbench.contract import tiny
from steerbench.data import Dialogue, Turn, user
from steerbench.edits import Add, ConditionGate, Site
from steerbench.learn import activations

VERBS, PEOPLE = ("rob", "cheat", "harm", "hurt"), ("a friend", "my uncle", "the mayor")
EXAMPLES = [
    example
    for i, (verb, who) in enumerate(product(VERBS, PEOPLE))
    for example in (
        Example(f"{i}a", f"{i}a", user(f"How do I {verb} {who}?"), "I cannot help with that.", "Sure."),
        Example(f"{i}b", f"{i}b", user(f"May I greet {who}, {i}"), "Happy to. Start small.", "No idea."),
    )
]
INSIDE = torch.tensor([True, False] * len(VERBS) * len(PEOPLE))


def context(lm: LanguageModel) -> FitContext:
    return FitContext(lm=lm, examples=EXAMPLES, reward=tiny.VowelReward(), decoding=Decoding(max_new_tokens=4))


def fit(lm: LanguageModel, **fields: object) -> Steering:
    return load("methods", "infer_aligner")(**{"condition": "declined", **fields}).fit(context(lm))


def last_states(lm: LanguageModel, layer: int, system: str = "") -> Tensor:
    """Return the last state of each training prompt, one at a time, (prompts, width)."""
    turns: Dialogue = (Turn("system", system),) if system else ()
    tokens = [lm.tokens((*turns, *e.prompt)) for e in EXAMPLES]
    return torch.stack([activations(lm, Site("resid_post", layer), [t], "last_prompt")[0] for t in tokens])


def unit(vector: Tensor) -> Tensor:
    scaled: Tensor = vector / vector.norm()
    return scaled


def between(states: Tensor) -> Tensor:
    difference: Tensor = states[INSIDE].mean(0) - states[~INSIDE].mean(0)
    return difference


def test_each_layer_has_the_shift_of_the_other_model_and_the_gate_of_its_own(tmp_path: Path) -> None:
    lm, other = tiny.language_model("llama"), tiny.language_model("llama", seed=1)
    other.model.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    steering = fit(lm, aligned=str(tmp_path), text="", first_layer=0, last_layer=2, relative_norm=0.2, strength=3.0)
    assert [p.site.layer for p in steering.edits] == [0, 1, 2]
    for layer, placed in enumerate(steering.edits):
        own = last_states(lm, layer)
        assert isinstance(placed.edit, Add)
        assert isinstance(placed.gate, ConditionGate)
        expected = 3 * 0.2 * own.norm(dim=1).mean() * unit(between(last_states(other, layer)))
        torch.testing.assert_close(placed.edit.constant(), expected, rtol=1e-3, atol=1e-4)
        s = unit(between(own))
        b = -((own[INSIDE].mean(0) + own[~INSIDE].mean(0)) / 2) @ s
        assert torch.equal(placed.gate.opens(own), own @ s + b > 0)
        assert placed.gate.site == str(placed.site)


def test_with_itself_as_the_aligned_model_the_shift_is_the_direction_of_its_gate() -> None:
    (placed,) = fit(tiny.language_model("llama"), text="", first_layer=1, last_layer=1).edits
    assert isinstance(placed.edit, Add)
    assert isinstance(placed.gate, ConditionGate)
    torch.testing.assert_close(unit(placed.edit.vector), unit(placed.gate.direction))


def test_a_system_text_stands_in_for_an_aligned_model() -> None:
    lm = tiny.language_model("llama")
    (placed,) = fit(lm, text="Be safe.", first_layer=1, last_layer=1).edits
    assert isinstance(placed.edit, Add)
    told = unit(between(last_states(lm, 1, "Be safe.")))
    torch.testing.assert_close(unit(placed.edit.vector), told, rtol=1e-3, atol=1e-4)


def test_the_gate_tells_planted_classes_it_was_not_fitted_on() -> None:
    inside = torch.arange(160) % 2 == 0
    noise = torch.randn(160, 16, generator=torch.Generator().manual_seed(0))
    planted = noise + torch.where(inside[:, None], 0.75, -0.75) + 5  # six deviations apart, far from 0
    module = importlib.import_module(load("methods", "infer_aligner").__module__)
    gate = module.midpoint_gate(Site("resid_post", 0), planted[:80], inside[:80])
    assert int((gate.opens(planted[80:]) == inside[80:]).sum()) >= 0.95 * 80


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    other = tiny.language_model("gpt2")
    config = tiny.FAMILIES["llama"]()
    config.num_hidden_layers = 2
    small = type(tiny.language_model("llama").model)(config)
    small.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SteerbenchError, match="with the same states"):
        fit(tiny.language_model("llama"), aligned=str(tmp_path))
