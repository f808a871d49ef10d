"""Methods that re-weight next tokens, against their formulas written naively: one row, no cache, token by token."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from steerbench import Decoding, FitContext, LanguageModel, Steering, generate, load
from steerbench.contract import tiny
from steerbench.contract.case import close
from steerbench.data import Dialogue, Turn, user
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.engine.effect import effect
from steerbench.learn import Tokens, response_logits
from steerbench.learn import token_head as heads
from steerbench.learn.value import Split

PROMPTS = [user("How do I bake a cake?"), user("Hi"), user("Why is the sky blue?")]
GREEDY = Decoding(max_new_tokens=6)
REWARD = tiny.VowelReward()


def context(lm: LanguageModel) -> FitContext:
    decoding = Decoding(max_new_tokens=6, temperature=1.0)
    return FitContext(lm=lm, examples=tiny.examples()[:24], reward=REWARD, decoding=decoding)


def fit(lm: LanguageModel, name: str, **fields: Any) -> Steering:
    steering: Steering = load("methods", name)(**fields).fit(context(lm))
    return steering


@torch.no_grad()
def next_logits(lm: LanguageModel, ids: list[int]) -> Tensor:
    logits: Tensor = lm.model(torch.tensor([ids])).logits[0, -1]
    return logits


def naive(lm: LanguageModel, dialogue: Dialogue, score: Callable[[list[int], list[int]], Tensor]) -> tuple[int, ...]:
    """Decode greedily by `score(prompt, response)`, (vocabulary,), until an end token."""
    prompt, response = list(lm.tokens(dialogue).prompt), list[int]()
    while len(response) < GREEDY.max_new_tokens and not set(response) & set(lm.end_ids):
        response.append(int(score(prompt, response).argmax()))
    return tuple(response)


def scored(lm: LanguageModel, steering: Steering, tokens: Tokens) -> Tensor:
    ((_, logits),) = response_logits(lm, [tokens], steering, dialogues=PROMPTS[:1], reward=REWARD)
    return logits


def agree(lm: LanguageModel, steering: Steering, score: Callable[[Dialogue, list[int], list[int]], Tensor]) -> None:
    """A batch is decoded token for token as the naive loop does it, and is unlike the model alone."""
    found = generate(lm, PROMPTS, steering, GREEDY, reward=REWARD)
    for dialogue, response in zip(PROMPTS, found, strict=True):
        wanted = naive(lm, dialogue, lambda prompt, ids, d=dialogue: score(d, prompt, ids))  # type: ignore[misc]
        assert lm.cut(wanted) == response
    assert found != generate(lm, PROMPTS, Steering(), GREEDY)


# ARGS


@pytest.mark.parametrize("k", [1, 10])
def test_args_is_its_formula(llama: LanguageModel, k: int) -> None:
    def score(dialogue: Dialogue, prompt: list[int], response: list[int]) -> Tensor:
        logits = next_logits(llama, prompt + response)
        best = torch.full_like(logits, -torch.inf)
        for z in logits.argsort(descending=True)[:k].tolist():
            text = llama.cut([*response, z]).text
            best[z] = logits[z] + 40.0 * float(REWARD.score([dialogue], [text]))
        return best

    steering = fit(llama, "args", w=40.0, k=k)
    if k > 1:
        agree(llama, steering, score)
    else:
        plain = generate(llama, PROMPTS, Steering(), GREEDY)
        assert generate(llama, PROMPTS, steering, GREEDY, reward=REWARD) == plain


def test_args_with_a_large_weight_takes_what_the_guide_likes_best(llama: LanguageModel) -> None:
    (response,) = generate(llama, PROMPTS[:1], fit(llama, "args", w=1e6, k=259), GREEDY, reward=REWARD)
    assert float(REWARD.score([()], [response.text])) == 1


def test_args_asks_nothing_about_rows_that_have_ended(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = tiny.VowelReward.score

    def counted(self: tiny.VowelReward, dialogues: Any, responses: Any, progress: Any = None) -> Tensor:
        asked.append(len(responses))
        return real(self, dialogues, responses)

    monkeypatch.setattr(tiny.VowelReward, "score", counted)
    end = llama.end_ids[0]

    prompts = [user("aaaa"), user("b")]
    first = int(next_logits(llama, list(llama.tokens(prompts[0]).prompt)).argmax())
    monkeypatch.setattr(llama, "end_ids", [end, first])
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", [end, first])
    found = generate(llama, prompts, fit(llama, "args", w=0.001, k=2), GREEDY, reward=REWARD)
    assert len(found[0].ids) == 1
    assert len(found[1].ids) > 1
    assert asked[0] == 4
    assert set(asked[1:]) == {2}


# Controlled decoding


def value_of(part: Any, states: Tensor) -> Tensor:
    for i, (weight, bias) in enumerate(zip(part.weights, part.biases, strict=True)):
        states = states @ weight.T + bias
        states = states.relu() if i < len(part.weights) - 1 else states
    return states[..., 0]


@torch.no_grad()
def final_state(lm: LanguageModel, ids: list[int]) -> Tensor:
    seen: list[Tensor] = []
    handle = lm.anatomy.head.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, -1]))
    lm.model(torch.tensor([ids]))
    handle.remove()
    return seen[0]


def test_controlled_decoding_is_its_formula(llama: LanguageModel) -> None:
    steering = fit(llama, "controlled_decoding", relative_beta=40.0, epochs=3)
    (part,) = steering.logits

    def score(dialogue: Dialogue, prompt: list[int], response: list[int]) -> Tensor:
        logits = next_logits(llama, prompt + response)
        here = value_of(part, final_state(llama, prompt + response))
        scores = torch.full_like(logits, -torch.inf)
        for z in logits.argsort(descending=True)[:4].tolist():
            ends = z in llama.end_ids
            value = here if ends else value_of(part, final_state(llama, [*prompt, *response, z]))
            scores[z] = logits[z] + part.beta * value  # type: ignore[attr-defined]
        return scores

    agree(llama, steering, score)


def test_on_a_markov_chain_it_is_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward belongs to the last token before the end; V solves v = P_end r + P v, and is linear in the states."""
    lm = markov_chain()
    with torch.no_grad():
        states = torch.stack([final_state(lm, [z]) for z in range(40)])
        chain = torch.stack([next_logits(lm, [z]) for z in range(40)]).double().softmax(-1)
    (end,) = lm.end_ids
    reward = torch.linspace(-1, 2, 40).double()
    onward = chain.clone()
    onward[:, end] = 0
    value = torch.linalg.solve(torch.eye(40).double() - onward, chain[:, end] * reward)
    weights = torch.linalg.lstsq(states.double(), value[:, None]).solution.T.float()
    module = load("methods", "controlled_decoding").__module__
    part = __import__(module, fromlist=["ValueAhead"]).ValueAhead([weights], [torch.zeros(1)], 1.5, 40)
    tokens = Tokens((5, 6), (7, 9, 30))
    found = scored(lm, Steering(logits=(part,)), tokens).softmax(-1)
    for row, last in zip(found, (6, 7, 9), strict=True):
        behind = value.clone()
        behind[end] = value[last]
        tilted = chain[last] * (1.5 * behind).exp()
        torch.testing.assert_close(row, (tilted / tilted.sum()).float(), rtol=1e-3, atol=1e-5)


def markov_chain() -> LanguageModel:
    """Return a model of 40 tokens whose next token depends on the last one alone."""
    shape = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    config = LlamaConfig(vocab_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            parameter.zero_()
        elif "lm_head" in name or "embed" in name:
            parameter.data = torch.randn_like(parameter) * 0.3
    lm = LanguageModel(model, tiny.tokenizer(), name="chain", revision="0")
    lm.largest_batch = None
    return lm


def test_a_head_that_looks_at_no_state_is_a_shift_at_final(llama: LanguageModel) -> None:
    """A linear value of the state and its constant logit bias are the same distribution."""
    module = __import__(load("methods", "controlled_decoding").__module__, fromlist=["NextTokenValue"])
    shift = torch.linspace(-0.5, 0.5, 32)
    table = llama.anatomy.head.get_parameter("weight").detach().T.contiguous()
    part = module.NextTokenValue(torch.zeros(32, 32), shift, table, 1.5)
    tokens = Tokens((5, 6), (7, 9, 30))
    edit = PlacedEdit(Site("final"), Add(1.5 * shift), "response")
    assert close(scored(llama, Steering(logits=(part,)), tokens), scored(llama, Steering(edits=(edit,)), tokens))


def test_the_next_token_head_scores_all_tokens_and_counts_in_kl(llama: LanguageModel) -> None:
    steering = fit(llama, "controlled_decoding", head="q", relative_beta=200.0, rank=4, epochs=3)
    (part,) = steering.logits
    tokens = Tokens(llama.tokens(PROMPTS[0]).prompt, (70, 80))
    for row, upto in zip(scored(llama, steering, tokens), (0, 1), strict=True):
        ids = [*tokens.prompt, *tokens.response[:upto]]
        q = (part.down @ final_state(llama, ids) + part.offset) @ part.tokens  # type: ignore[attr-defined]
        assert close(row, next_logits(llama, ids) + part.beta * q)  # type: ignore[attr-defined]
    responses = generate(llama, PROMPTS, steering, GREEDY)
    assert all(kl > 0 and math.isfinite(kl) for kl in effect(llama, PROMPTS, responses, steering).kl)


def test_the_next_token_head_finds_a_planted_one(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LR", 0.1)
    generator = torch.Generator().manual_seed(0)
    directions = heads.token_directions(context(llama), 4)
    true = torch.randn(4, 8, generator=generator)

    def steps(rows: Any, generator: Any = None) -> Iterator[heads._Steps]:
        for row in rows:
            draw = torch.Generator().manual_seed(row)
            states = torch.randn(256, 8, generator=draw)
            tokens = torch.randint(259, (256,), generator=draw)
            q = ((states @ true.T) * directions[:, tokens].T).sum(-1)
            yield heads._Steps(states, tokens, q + torch.randn(256, generator=draw))

    down, _, explained = heads._fitted(steps, Split(range(8), range(8, 12)), directions, 8, context(llama))
    assert explained is not None
    assert explained > 0.8  # of which noise leaves 0.97
    assert torch.nn.functional.cosine_similarity(down.flatten(), true.flatten(), dim=0) > 0.95


# Guidance by a prompt and by other models


def test_classifier_free_is_its_formula(llama: LanguageModel) -> None:
    def score(dialogue: Dialogue, prompt: list[int], response: list[int]) -> Tensor:
        told = list(llama.tokens((Turn("system", "Be kind."), *dialogue)).prompt)
        base, other = (next_logits(llama, p + response).log_softmax(-1) for p in (prompt, told))
        return base + 3.0 * (other - base)

    agree(llama, fit(llama, "classifier_free", text="Be kind.", scale=3.0), score)


def test_classifier_free_at_scale_one_is_the_model_with_the_prompt(llama: LanguageModel) -> None:
    told = fit(llama, "static_prompt", text="Be kind.")
    assert generate(llama, PROMPTS, fit(llama, "classifier_free", text="Be kind.", scale=1.0), GREEDY) == generate(
        llama, PROMPTS, told, GREEDY
    )


def test_dexperts_is_its_formula(llama: LanguageModel, world: Path, tmp_path: Path) -> None:
    other = tiny.language_model(seed=1)
    other.model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)

    def score(dialogue: Dialogue, prompt: list[int], response: list[int]) -> Tensor:
        logits, expert = (next_logits(lm, prompt + response) for lm in (llama, other))
        return logits + 2.0 * (expert.log_softmax(-1) - logits.log_softmax(-1))

    agree(llama, fit(llama, "dexperts", expert=str(tmp_path), anti=str(world / "lm"), alpha=2.0), score)
    agree(llama, fit(llama, "dexperts", expert=str(tmp_path), alpha=2.0), score)


def test_dexperts_with_the_same_model_twice_is_the_model(llama: LanguageModel, world: Path) -> None:
    name = str(world / "lm")
    found = generate(llama, PROMPTS, fit(llama, "dexperts", expert=name, anti=name), GREEDY)
    assert found == generate(llama, PROMPTS, Steering(), GREEDY)


# References


def test_rtd_is_its_formula(llama: LanguageModel) -> None:
    steering = fit(llama, "rtd", share=0.4, k=5, temperature=0.2)
    pairs = context(llama).pairs()
    known = [
        (final_state(llama, [*p.chosen.prompt, *p.chosen.response[:t]]), z)
        for p in pairs[:3]
        for t, z in enumerate(p.chosen.response)
    ]
    (part,) = steering.logits
    for i, (state, token) in enumerate(known):
        assert close(part.states[i], state)  # type: ignore[attr-defined]
        assert int(part.tokens[i]) == token  # type: ignore[attr-defined]

    def score(dialogue: Dialogue, prompt: list[int], response: list[int]) -> Tensor:
        distances = (final_state(llama, prompt + response) - part.states).norm(dim=1) / part.unit  # type: ignore[attr-defined]
        near = distances.argsort()[:5].tolist()
        weights = [math.exp(-float(distances[i]) / 0.2) for i in near]
        mixed = 0.6 * next_logits(llama, prompt + response).softmax(-1)
        for i, weight in zip(near, weights, strict=True):
            mixed[int(part.tokens[i])] += 0.4 * weight / sum(weights)  # type: ignore[attr-defined]
        return mixed.log()

    agree(llama, steering, score)
