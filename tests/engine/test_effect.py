"""What a steering does to states and tokens, counted by hand."""

from collections.abc import Sequence
from dataclasses import replace
from math import isnan, log

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

from steerbench import Decoding, LanguageModel, Reward, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import Dialogue, Turn, user
from steerbench.edits import Add, DecodePart, LogitsPart, PlacedEdit, PromptPart, Site
from steerbench.engine.effect import effect
from steerbench.engine.logits import response_logits
from steerbench.learn import Response, Tokens, activations
from steerbench.learn.context import FitContext
from steerbench.plugins.spec import build, parse

PROMPTS = [user("How do I bake a cake?"), user("Hi"), user("Why is the sky blue?")]
GREEDY = Decoding(max_new_tokens=5)
VECTOR = torch.linspace(-1, 1, tiny.WIDTH)


class Politely(PromptPart):
    """Asks politely."""

    def __call__(self, dialogue: Dialogue) -> Dialogue:
        return (Turn("system", "Be polite."), *dialogue)


PROMPTED = Steering(prompt=(Politely(),))


def added(strength: float, site: str = "final") -> Steering:
    return Steering(edits=(PlacedEdit(Site.parse(site), Add(VECTOR, strength)),))


class Forbid(LogitsProcessor):
    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.token] = -torch.inf
        return scores


class Without(LogitsPart):
    """Forbids one token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def processor(self, lm: LanguageModel, prompt_ids: Tensor, mask: Tensor) -> Forbid:
        return Forbid(self.token)


class First(DecodePart):
    """A choice whose KL nobody knows."""

    candidates = 2

    def choose(self, dialogue: Dialogue, candidates: Sequence[str], reward: Reward) -> int:
        return 0


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
    found = effect(lm, PROMPTS, responses, steering, batch_size=batch_size).report
    share, norms = by_hand(lm, responses, 0.4)
    assert found["tokens"] == len(norms)
    assert found["argmax_changed"] == pytest.approx(share)
    assert 0 < share < 1
    assert found["edit_norm"]["final"]["mean"] == pytest.approx(float(norms.mean()), rel=1e-3)
    assert found["edit_norm"]["final"]["p95"] == pytest.approx(float(norms.quantile(0.95)), rel=1e-3)


def test_each_site_is_reported(llama: LanguageModel) -> None:
    steering = added(0.1) + added(0.2, "resid_post.1") + added(0.3, "mlp_out.0")
    found = effect(llama, PROMPTS, generate(llama, PROMPTS, steering, GREEDY), steering).report
    assert set(found["edit_norm"]) == {"final", "resid_post.1", "mlp_out.0"}
    assert all(0 < values["mean"] <= values["p95"] for values in found["edit_norm"].values())


def test_a_prompt_changes_tokens_and_edits_nothing(llama: LanguageModel) -> None:
    prompted = load("methods", "static_prompt")().fit(FitContext(lm=llama, examples=[], reward=tiny.VowelReward()))
    found = effect(llama, PROMPTS, generate(llama, PROMPTS, prompted, GREEDY), prompted).report
    assert found["edit_norm"] == {}
    assert found["argmax_changed"] > 0


def test_nothing_to_report(llama: LanguageModel) -> None:
    responses = generate(llama, PROMPTS, decoding=GREEDY)
    kl, nll, report = effect(llama, PROMPTS, responses, Steering())
    assert (kl, report) == ([0, 0, 0], {})
    assert all(value > 0 for value in nll)
    nothing = effect(llama, PROMPTS, [Response("", (), "turn")] * 3, added(0.4))
    assert nothing.report == {}
    assert all(isnan(value) for value in nothing.kl + nothing.nll)
    unchanged = effect(llama, PROMPTS, responses, added(0.0))
    assert unchanged.report["argmax_changed"] == 0
    assert unchanged.kl == [0, 0, 0]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("steering", [added(0.4), added(0.3, "resid_post.1"), PROMPTED + added(0.2)])
def test_kl_and_nll_are_the_sums_of_their_definitions(
    llama: LanguageModel, steering: Steering, batch_size: int
) -> None:
    """Token by token in double precision, the steered and the unsteered model run one after the other."""
    responses = generate(llama, PROMPTS, steering, Decoding(max_new_tokens=5, temperature=1.0))
    found = effect(llama, PROMPTS, responses, steering, batch_size=batch_size)
    for prompt, response, kl, nll in zip(PROMPTS, responses, found.kl, found.nll, strict=True):
        seen = Tokens(llama.tokens(steering.apply_prompt(prompt)).prompt, response.ids)
        plain = Tokens(llama.tokens(prompt).prompt, response.ids)
        ((_, steered),) = response_logits(llama, [seen], steering)
        ((_, unsteered),) = response_logits(llama, [plain])
        gaps, losses = [], []
        for token, after, before in zip(response.ids, steered.double(), unsteered.double(), strict=True):
            p, q = after.softmax(-1), before.softmax(-1)
            gaps.append(sum(float(a * (a.log() - b.log())) for a, b in zip(p, q, strict=True)))
            losses.append(-float(q[token].log()))
        assert kl == pytest.approx(sum(gaps) / len(gaps), rel=1e-4, abs=1e-6)
        assert nll == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_a_forbidden_token_adds_nothing_to_the_divergence(llama: LanguageModel) -> None:
    """Forbidding a token of probability q moves the rest by -log(1 - q)."""
    steering = Steering(logits=(Without(7),))
    responses = generate(llama, PROMPTS, steering, Decoding(max_new_tokens=1, temperature=1.0))
    found = effect(llama, PROMPTS, responses, steering)
    for prompt, response, kl in zip(PROMPTS, responses, found.kl, strict=True):
        ((_, logits),) = response_logits(llama, [Tokens(llama.tokens(prompt).prompt, response.ids)])
        q = float(logits.double().softmax(-1)[0, 7])
        assert kl == pytest.approx(-log(1 - q), abs=1e-6)


def test_a_choice_among_candidates_costs_its_bound(llama: LanguageModel) -> None:
    responses = generate(llama, PROMPTS, decoding=Decoding(max_new_tokens=5, temperature=1.0))
    best = build(parse("best_of_n:n=8")[0])[0].fit(FitContext(lm=llama, examples=[], reward=tiny.VowelReward()))
    alone, steered = (effect(llama, PROMPTS, responses, s) for s in (best, best + added(0.4)))
    for drawn in ({"temperature": 0.7}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.0, "top_p": 0.9}):
        found = effect(llama, PROMPTS, responses, best, decoding=Decoding(**drawn))  # type: ignore[arg-type]
        assert all(isnan(kl) for kl in found.kl), "candidates are drawn from something else than KL is measured by"
    bound = log(8) - 7 / 8
    assert alone.kl == pytest.approx([bound / len(r.ids) for r in responses])
    assert alone.report == {"choice_kl": "bound"}
    assert all(isnan(kl) for kl in steered.kl), "the chosen ones are no sample of what is steered"
    assert steered.report["tokens"] == sum(len(r.ids) for r in responses)
    unknown = effect(llama, PROMPTS, responses, Steering(decode=First()))
    assert all(isnan(kl) for kl in unknown.kl)
    assert unknown.report == {"choice_kl": "unknown"}


class Estimated(First):
    """A choice of which an estimate is known, that hangs on how many were drawn each time."""

    kl_is = "estimate"

    def choice_kl(self, draws: Sequence[int]) -> float:
        return float(sum(draws))


def test_a_choice_counts_what_was_drawn(llama: LanguageModel) -> None:
    steering = Steering(decode=Estimated())
    responses = [
        replace(r, draws=draws)
        for r, draws in zip(
            generate(llama, PROMPTS, decoding=Decoding(max_new_tokens=5, temperature=1.0)),
            [(2, 2, 3), (1,), (4, 4)],
            strict=True,
        )
    ]
    found = effect(llama, PROMPTS, responses, steering)
    assert found.kl == pytest.approx([n / len(r.ids) for n, r in zip((7, 1, 8), responses, strict=True)])
    assert found.report == {"choice_kl": "estimate"}
