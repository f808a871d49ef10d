"""RE-Control and its static relative: against their formulas, and the equivalences that hold for special cases."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from thorough import mostly_slow
from torch import Tensor

from steerbench import (
    Decoding,
    Example,
    FitContext,
    LanguageModel,
    Options,
    Protocol,
    Reward,
    SteerbenchError,
    Steerer,
    Steering,
    generate,
    load,
    run,
)
from steerbench.bench.setup import Setup
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Ascent, Site
from steerbench.learn import Split, Tokens, Training, ValueFunction, activations, response_logits, valuation
from steerbench.progress import Progress, silent

PROMPTS = [user("How do I bake a cake?"), user("Hi"), user("Why is the sky blue, and who said so?")]
TOKENS = [Tokens((5, 6, 7), (8, 9, 10)), Tokens((10,), (11, 12, 13, 14)), Tokens((4, 5), (6,))]
QUICK = {"epochs": 3}


def context(lm: LanguageModel, **settings: Any) -> FitContext:
    given: dict[str, Any] = {
        "examples": tiny.examples()[:24],
        "decoding": Decoding(max_new_tokens=6, temperature=1.0),
        "reward": tiny.VowelReward(),
    }
    return FitContext(lm=lm, **(given | settings))


def fit(lm: LanguageModel, name: str = "re_control", **fields: Any) -> Steering:
    return method(name, **fields).fit(context(lm))


def method(name: str, **fields: Any) -> Steerer:
    return load("methods", name)(**({**QUICK, **fields} if name == "re_control" else fields))


def logits(lm: LanguageModel, steering: Steering | None = None) -> list[Tensor]:
    found = dict(response_logits(lm, TOKENS, steering or Steering()))
    return [found[i] for i in range(len(TOKENS))]


def ascent_of(steering: Steering) -> Ascent:
    (placed,) = steering.edits
    assert (str(placed.site), placed.scope) == ("final", "response")
    assert isinstance(placed.edit, Ascent)
    return placed.edit


def naive_logits(lm: LanguageModel, tokens: Tokens, edit: Ascent) -> Tensor:
    """Return softcap-free logits W (o + u), with u by autograd, one position after the other, alone and unpadded."""
    base = lm.model.base_model(torch.tensor([tokens.prompt + tokens.response])).last_hidden_state[0]
    first = len(tokens.prompt) - 1
    rows = []
    for o in base[first : first + len(tokens.response)].detach():
        u = torch.zeros_like(o, requires_grad=True)
        optimizer = torch.optim.SGD([u], lr=edit.step_size)
        for _ in range(edit.n_steps):
            h = o + u
            for weight, bias in list(zip(edit.weights, edit.biases, strict=True))[:-1]:
                h = torch.relu(weight @ h + bias)
            optimizer.zero_grad()
            torch.autograd.backward(-(edit.weights[-1] @ h + edit.biases[-1]).sum())
            optimizer.step()
        rows.append(lm.anatomy.head(o + u.detach()))
    return torch.stack(rows).detach()


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "gpt_neox"])
def test_the_steered_logits_are_those_of_the_climbed_state(family: str, layers: int) -> None:
    lm = tiny.language_model(family)
    steering = fit(lm, layers=layers, relative_norm=0.2)
    for t, found in zip(TOKENS, logits(lm, steering), strict=True):
        torch.testing.assert_close(found, naive_logits(lm, t, ascent_of(steering)), rtol=1e-3, atol=1e-3)


def test_a_linear_value_is_a_constant_logit_bias(llama: LanguageModel) -> None:
    steering = fit(llama, layers=1, step_size=0.3, n_steps=10)
    edit = ascent_of(steering)
    bias = llama.anatomy.head(3.0 * edit.weights[0])[0].detach()
    for plain, steered in zip(logits(llama), logits(llama, steering), strict=True):
        torch.testing.assert_close(steered - plain, bias.expand_as(plain), rtol=1e-3, atol=1e-4)
    one_step = fit(llama, layers=1, step_size=3.0, n_steps=1)
    for a, b in zip(logits(llama, steering), logits(llama, one_step), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("layers", "off"), [(1, {"n_steps": 0}), (2, {"step_size": 0.0}), (3, {"relative_norm": 0.0})])
def test_off_is_bit_equal_to_the_unsteered_model(lm: LanguageModel, layers: int, off: dict[str, Any]) -> None:
    steering = fit(lm, layers=layers, epochs=1, **off)
    assert all(torch.equal(a, b) for a, b in zip(logits(lm), logits(lm, steering), strict=True))
    greedy = Decoding(max_new_tokens=6)
    assert generate(lm, PROMPTS, steering, greedy) == generate(lm, PROMPTS, decoding=greedy)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("hh_vicuna", (3, 0.5, 30)),
        ("hh_falcon", (2, 0.2, 200)),
        ("shp_vicuna", (2, 1.0, 50)),
        ("shp_llama3", (2, 1.0, 30)),
    ],
)
def test_published_settings(llama: LanguageModel, setting: str, expected: tuple[int, float, int]) -> None:
    edit = ascent_of(fit(llama, setting=setting, step_size="published"))
    assert (edit.depth, edit.step_size, edit.n_steps) == expected
    assert edit.weights[0].shape == (tiny.WIDTH, tiny.WIDTH)  # 4096, but not wider than the state
    other = ascent_of(fit(llama, setting=setting, layers=2, hidden=5, step_size=0.25, n_steps=7))
    assert (other.depth, other.step_size, other.n_steps, len(other.weights[0])) == (2, 0.25, 7, 5)


@pytest.mark.parametrize(
    ("given", "relative_norm"), [({"relative_norm": 0.05}, 0.05), ({"relative_norm": 0.5}, 0.5), ({}, 0.2)]
)
def test_relative_norm_calibrates_the_step(llama: LanguageModel, given: dict[str, float], relative_norm: float) -> None:
    settings = context(llama)
    edit = ascent_of(method("re_control", **given).fit(settings))
    states = settings.states(Site("final"), [r.tokens for r in settings.rollouts()])
    (batch,) = states.batches(range(24), 24)
    moved = edit.shift(batch.states).norm(dim=-1) / batch.states.norm(dim=-1)
    assert float(moved.median()) == pytest.approx(relative_norm, rel=0.02)
    assert settings.report["step_size"] == edit.step_size


class Lengths(Reward):
    """The number of characters of a response."""

    name, revision = "lengths", "0"

    def score(self, dialogues: Any, responses: Sequence[str], progress: Progress = silent) -> Tensor:
        return torch.tensor([float(len(r)) for r in responses])


def test_the_terminal_state_is_the_one_that_gives_the_end_token(llama: LanguageModel) -> None:
    """A response of n tokens, its end token included, has n states, and the last of them gives the end token."""
    settings = context(llama, reward=Lengths(), decoding=Decoding(max_new_tokens=40, temperature=2.0))
    rollouts = settings.rollouts()
    states = settings.states(Site("final"), [r.tokens for r in rollouts])
    assert states.lengths == [len(r.response.ids) for r in rollouts]
    ended = [i for i, r in enumerate(rollouts) if r.response.finish == "end"]
    assert ended
    for i in ended:
        (batch,) = states.batches([i], 1)
        (steps,) = dict(response_logits(llama, [rollouts[i].tokens])).values()
        torch.testing.assert_close(llama.anatomy.head(batch.states).detach(), steps, rtol=1e-4, atol=1e-4)
        assert rollouts[i].tokens.response[-1] in llama.end_ids


def test_fit_reads_states_once_for_all_trials_and_compositions(llama: LanguageModel) -> None:
    shared = context(llama)
    method("re_control").fit(shared)
    calls: list[int] = []
    llama.model.register_forward_pre_hook(lambda m, a: calls.append(1))
    method("re_control", relative_norm=0.3).fit(shared)
    method("re_control", terminal="first", detach=False).fit(shared)
    assert calls == []


def test_the_training_settings_reach_the_value_function(llama: LanguageModel) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"td_lambda": 1.0},
        {"terminal": "first"},
        {"detach": False},
        {"lr": 1e-2},
        {"batch_size": 4},
    ]
    digests = [fit(llama, **variant).digest() for variant in variants]
    assert len(set(digests)) == len(variants)
    assert fit(llama).digest() == digests[0]


def test_the_first_state_as_terminal_means_td_0(llama: LanguageModel) -> None:
    assert fit(llama, terminal="first", td_lambda=0.9).digest() == fit(llama, terminal="first").digest()


@pytest.mark.slow
def test_the_default_tells_the_prompts_of_the_testbed_apart() -> None:
    """More than the published setting does on the same rollouts; training ends by itself."""
    setup = Setup(Protocol(n_train=160, decoding=Decoding(max_new_tokens=32, temperature=1.0)), Options())
    context, spreads = setup.context(0), []
    for fields in ({}, {"td_lambda": 0.0, "epochs": 100}):
        edit = ascent_of(load("methods", "re_control")(**fields).fit(context))
        value = ValueFunction(tuple(edit.weights), tuple(edit.biases))
        states = context.states(Site("final"), [r.tokens for r in context.rollouts() if r.response.ids])
        firsts = [batch.states[0] for batch in states.batches(range(len(states)), 1)]
        spreads.append(float(value(torch.stack(firsts)).std()))
        if not fields:
            assert context.report["best_epoch"] < context.report["epochs"] - 1 < 1000
    assert spreads[0] > 1.5 * spreads[1]


@pytest.mark.slow
def test_credit_reaches_the_first_token_of_the_testbed() -> None:
    """The default tells prompts apart at least half as well as Monte-Carlo returns of five times the rollouts."""
    spreads, firsts = [], torch.empty(0)
    for n_train, fields in ((512, {}), (2400, {"td_lambda": 1.0})):
        context = Setup(Protocol(n_train=n_train), Options()).context(0)
        edit = ascent_of(load("methods", "re_control")(**fields).fit(context))
        assert context.report["best_epoch"] < context.report["epochs"] - 1 < 1000
        if not fields:
            states = context.states(Site("final"), [r.tokens for r in context.rollouts() if r.response.ids])
            firsts = torch.stack([batch.states[0] for batch in states.batches(range(len(states)), 1)])
        spreads.append(float(ValueFunction(tuple(edit.weights), tuple(edit.biases))(firsts).std()))
    assert spreads[0] >= 0.5 * spreads[1], spreads


def test_what_cannot_be_fitted_is_told(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match="n_steps must be a whole number of 0 or more, or none, not -3"):
        fit(llama, n_steps=-3)
    with pytest.raises(
        SteerbenchError, match=r"relative_norm must be a finite number of 0 or more, or none, not -1\.0"
    ):
        fit(llama, relative_norm=-1.0)
    with pytest.raises(SteerbenchError, match="step_size and relative_norm exclude each other"):
        fit(llama, step_size=0.5, relative_norm=0.1)
    with pytest.raises(SteerbenchError, match="layers must be a whole number from 1 to 3, or none, not 5"):
        fit(llama, layers=5)
    with pytest.raises(SteerbenchError, match="no rollout has a token"):
        method("re_control").fit(context(llama, examples=[]))


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Catch what the method hands to the training of its value function, and to the calibration report."""
    module: Any = valuation
    seen: dict[str, Any] = {}

    def train_value(states: Any, rewards: Tensor, split: Split, training: Training, **settings: Any) -> Any:
        seen.update(states=states, rewards=rewards, split=split, training=training, **settings)
        return real_train(states, rewards, split, training, **settings)

    def calibration(value: Any, states: Any, rewards: Tensor, rows: Any) -> Any:
        seen.update(reported=rows)
        return real_calibration(value, states, rewards, rows)

    real_train, real_calibration = module.train_value, module.calibration
    monkeypatch.setattr(module, "train_value", train_value)
    monkeypatch.setattr(module, "calibration", calibration)
    return seen


def test_the_value_function_learns_from_the_right_numbers(llama: LanguageModel, trainer: dict[str, Any]) -> None:
    """Each rollout's states meet its own reward, groups stay on one side, and the report is on what was held out."""
    examples = [replace(e, group=f"g{i // 2}") for i, e in enumerate(tiny.examples()[:40])]
    settings = context(llama, examples=examples)
    method("re_control").fit(settings)
    rollouts, split = settings.rollouts(), trainer["split"]
    assert trainer["rewards"].tolist() == pytest.approx([r.reward for r in rollouts])
    assert len(set(trainer["rewards"].tolist())) > 3
    assert trainer["states"].lengths == [len(r.response.ids) for r in rollouts]
    groups = [{rollouts[i].group for i in rows} for rows in split]
    assert list(map(len, groups)) == [16, 2, 2]
    assert len(set.union(*groups)) == 20
    assert trainer["reported"] == split.report
    assert trainer["training"].epochs == QUICK["epochs"]


def test_seeds_and_settings_are_kept_apart_in_one_run(llama: LanguageModel) -> None:
    shared = context(llama)
    first = method("re_control").fit(shared).digest()
    assert method("re_control", layers=2).fit(shared).digest() != first
    assert method("re_control").fit(replace(shared, seed=1)).digest() != first
    assert method("re_control").fit(shared).digest() == first


class Planted(Reward):
    """The reward of a response is a known linear function of the state after its prompt."""

    name, revision = "planted", "0"

    def __init__(self, lm: LanguageModel, direction: Tensor, site: Site) -> None:
        self.lm, self.direction, self.site = lm, direction, site

    def score(self, dialogues: Any, responses: Any, progress: Progress = silent) -> Tensor:
        states = activations(self.lm, self.site, [self.lm.tokens(d) for d in dialogues], "last_prompt")
        return torch.stack(states) @ self.direction


def many_examples() -> list[Example]:
    """Return 416 examples, each a group of its own: more than a state has dimensions."""
    questions = map(" ".join, itertools.product("abcdefghijklmnop", "qrstuvwxyz"))
    return [Example(str(i), str(i), user(f"{question}?"), "a", "b") for i, question in enumerate(questions)]


@pytest.mark.parametrize("sign", mostly_slow([1.0, -1.0], lambda sign: sign > 0))
def test_the_ascent_goes_where_the_reward_grows(llama: LanguageModel, sign: float) -> None:
    """With one token per response, V is a regression on the state after the prompt, and its truth is known."""
    torch.manual_seed(0)
    direction = sign * torch.randn(tiny.WIDTH)
    one_token = Decoding(max_new_tokens=1)
    reward = Planted(llama, direction, Site("final"))
    settings = context(llama, examples=many_examples(), reward=reward, decoding=one_token)
    edit = ascent_of(method("re_control", layers=2, epochs=60, lr=3e-3, relative_norm=0.1).fit(settings))
    fresh = [user(f"Why {word}?") for word in ("not", "now", "me", "here", "so", "then", "ever", "again")]
    states = torch.stack(activations(llama, Site("final"), [llama.tokens(d) for d in fresh], "last_prompt"))
    assert settings.report["correlation"]["0%"] > 0.9
    assert float(torch.cosine_similarity(edit.shift(states), direction, dim=1).min()) > 0.5


# Static RE


@pytest.mark.parametrize("site", ["final", "resid_post"])
def test_static_re_finds_the_direction_of_the_reward(llama: LanguageModel, site: Any) -> None:
    """With more prompts than dimensions of their states, the regression is exact: the direction, up to its length."""
    place = Site("final") if site == "final" else Site("resid_post", 1)
    torch.manual_seed(0)
    direction = torch.randn(tiny.WIDTH)
    settings = context(llama, examples=many_examples(), reward=Planted(llama, direction, place))
    steering = method("static_re", site=site, strength=0.3).fit(settings)
    (placed,) = steering.edits
    vector = placed.edit.vector
    assert isinstance(vector, Tensor)
    assert float(torch.cosine_similarity(vector, direction, dim=0)) > 0.99
    states = settings.activations(place, [r.tokens for r in settings.rollouts()], "last_prompt")
    assert float(vector.norm()) == pytest.approx(float(torch.stack(states).norm(dim=1).mean()), rel=1e-4)
    assert placed.site == place


def test_static_re_reads_the_states_of_its_pool(llama: LanguageModel) -> None:
    vectors: list[Tensor] = []
    for pool in ("last_prompt", "response_mean"):
        settings = context(llama)
        (placed,) = method("static_re", pool=pool).fit(settings).edits
        vector, tokens = placed.edit.vector, [r.tokens for r in settings.rollouts()]
        lengths = torch.stack(settings.activations(Site("final"), tokens, pool)).norm(dim=1)
        assert isinstance(vector, Tensor)
        assert float(vector.norm()) == pytest.approx(float(lengths.mean()), rel=1e-4)
        vectors.append(vector)
    assert abs(float(torch.cosine_similarity(vectors[0], vectors[1], dim=0))) < 0.95


def test_static_re_at_final_is_a_constant_logit_bias(llama: LanguageModel) -> None:
    steering = fit(llama, "static_re", strength=0.2)
    vector = steering.edits[0].edit.vector
    assert isinstance(vector, Tensor)
    bias = llama.anatomy.head(0.2 * vector).detach()
    for plain, steered in zip(logits(llama), logits(llama, steering), strict=True):
        torch.testing.assert_close(steered - plain, bias.expand_as(plain), rtol=1e-3, atol=1e-4)


def test_equal_rewards_tell_no_direction(llama: LanguageModel) -> None:
    class Same(Lengths):
        def score(self, dialogues: Any, responses: Sequence[str], progress: Progress = silent) -> Tensor:
            return torch.ones(len(responses))

    steering = method("static_re").fit(context(llama, reward=Same()))
    assert not bool(steering.edits[0].edit.vector.any())  # type: ignore[operator]
    with pytest.raises(SteerbenchError, match="needs two rollouts"):
        method("static_re").fit(context(llama, examples=tiny.examples()[:1]))


# In a run


def test_a_run_reports_on_the_fit_and_its_effect(protocol: Protocol, tmp_path: Path) -> None:
    methods = "re_control:epochs=2:relative_norm=0.3+static_prompt,static_re:strength=0.5,static_re:strength=0"
    outcome = run(replace(protocol, n_train=12), methods, Options(out=tmp_path))
    assert not outcome.failures
    unsteered, both, static, off = outcome.records
    assert unsteered.report["effect"] == {}
    found = both.report["fit"]["re_control"]
    assert set(found["correlation"]) == {"0%", "25%", "50%", "75%", "100%"}
    assert sum(found["rollouts"].values()) == 12
    assert both.report["effect"]["edit_norm"]["final"]["mean"] == pytest.approx(0.3, rel=0.5)
    assert static.report["effect"]["edit_norm"]["final"]["mean"] == pytest.approx(0.5, rel=0.2)
    assert static.report["effect"]["tokens"] == sum(len(r) for r in _ids(static))
    assert off.report["effect"]["argmax_changed"] == 0
    assert off.report["effect"]["edit_norm"]["final"] == {"mean": 0, "p95": 0}


def _ids(record: Any) -> list[range]:
    """Return as many items as each response has tokens, the end token included."""
    table = record.examples
    return [range(int(n) + (f == "end")) for n, f in zip(table["length"], table["finish"], strict=True)]
