"""What a steering does to states and tokens, counted by hand."""

import pytest
import torch
from torch import Tensor

from steerbench import (
    Add,
    Decoding,
    LanguageModel,
    PlacedEdit,
    Response,
    Site,
    Steering,
    Tokens,
    activations,
    generate,
    load,
    tiny,
    user,
)
from steerbench.effect import effect
from steerbench.steerer import FitContext

PROMPTS = [user("How do I bake a cake?"), user("Hi"), user("Why is the sky blue?")]
GREEDY = Decoding(max_new_tokens=5)
VECTOR = torch.linspace(-1, 1, tiny.WIDTH)


def added(strength: float, site: str = "final") -> Steering:
    return Steering(edits=(PlacedEdit(Site.parse(site), Add(VECTOR, strength)),))


def by_hand(lm: LanguageModel, responses: list[Response], strength: float) -> tuple[float, Tensor]:
    """Return the share of tokens whose first choice changed, and |vector| / |state| at each, for an edit at `final`."""
    changed, norms = [], []
    for prompt, response in zip(PROMPTS, responses, strict=True):
        tokens = Tokens(lm.tokens(prompt).prompt, response.ids)
        (states,) = activations(lm, Site("final"), [tokens], "all")
        first = len(tokens.prompt) - 1
        for state in states[first : first + len(tokens.response)]:
            plain, steered = (lm.anatomy.head(x).argmax() for x in (state, state + strength * VECTOR))
            changed.append(float(plain != steered))
            norms.append(strength * VECTOR.norm() / state.norm())
    return sum(changed) / len(changed), torch.stack(norms)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_effect_is_what_counting_finds(family: str, batch_size: int) -> None:
    lm = tiny.language_model(family)
    steering = added(0.4)
    responses = generate(lm, PROMPTS, steering, GREEDY)
    found = effect(lm, PROMPTS, responses, steering, batch_size=batch_size)
    share, norms = by_hand(lm, responses, 0.4)
    assert found["tokens"] == len(norms)
    assert found["argmax_changed"] == pytest.approx(share)
    assert 0 < share < 1
    assert found["edit_norm"]["final"]["mean"] == pytest.approx(float(norms.mean()), rel=1e-3)
    assert found["edit_norm"]["final"]["p95"] == pytest.approx(float(norms.quantile(0.95)), rel=1e-3)


def test_each_site_is_reported(llama: LanguageModel) -> None:
    steering = added(0.1) + added(0.2, "resid_post.1") + added(0.3, "mlp_out.0")
    found = effect(llama, PROMPTS, generate(llama, PROMPTS, steering, GREEDY), steering)
    assert set(found["edit_norm"]) == {"final", "resid_post.1", "mlp_out.0"}
    assert all(0 < values["mean"] <= values["p95"] for values in found["edit_norm"].values())


def test_a_prompt_changes_tokens_and_edits_nothing(llama: LanguageModel) -> None:
    prompted = load("methods", "static_prompt")().fit(FitContext(lm=llama, examples=[], reward=tiny.VowelReward()))
    found = effect(llama, PROMPTS, generate(llama, PROMPTS, prompted, GREEDY), prompted)
    assert found["edit_norm"] == {}
    assert found["argmax_changed"] > 0


def test_nothing_to_report(llama: LanguageModel) -> None:
    responses = generate(llama, PROMPTS, decoding=GREEDY)
    assert effect(llama, PROMPTS, responses, Steering()) == {}
    assert effect(llama, PROMPTS, [Response("", (), "turn")] * 3, added(0.4)) == {}
    assert effect(llama, PROMPTS, responses, added(0.0))["argmax_changed"] == 0
