"""Pref-CTRL: its loss against the formula, the states it is made of, and RE-Control where both weights are 0."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from steerbench import Decoding, FitContext, LanguageModel, SteerbenchError, load
from steerbench.contract import tiny
from steerbench.learn import valuation

PrefCTRL: Any = load("methods", "pref_ctrl")
module: Any = sys.modules[PrefCTRL.__module__]


def context(lm: LanguageModel) -> FitContext:
    decoding = Decoding(max_new_tokens=6, temperature=1.0)
    return FitContext(lm=lm, examples=tiny.examples()[:24], decoding=decoding, reward=tiny.VowelReward())


def last_state(lm: LanguageModel, ids: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        found: Tensor = lm.model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
    return found


def test_without_weights_it_is_re_control(llama: LanguageModel) -> None:
    plain = PrefCTRL(margin=0.0, anchor=0.0, epochs=3).fit(context(llama))
    same = load("methods", "re_control")(layers=3, n_steps=50, epochs=3).fit(context(llama))  # type: ignore[call-arg]
    assert plain.digest() == same.digest()
    assert PrefCTRL(epochs=3).fit(context(llama)).digest() != plain.digest()


def test_each_reply_has_its_own_last_state(llama: LanguageModel) -> None:
    given = context(llama)
    ends = module.last_states(given)
    drawn = [(e, r) for e, r in zip(given.examples, given.rollouts(), strict=True) if r.tokens.response]
    assert len(ends) == len(drawn) > 10
    for i in (0, 5):
        example, rollout = drawn[i]
        own = rollout.tokens.prompt + rollout.tokens.response[:-1]
        replies = [llama.tokens(example.prompt, text, 6) for text in (example.chosen, example.rejected)]
        wanted = [last_state(llama, own), *(last_state(llama, t.prompt + t.response) for t in replies)]
        torch.testing.assert_close(ends[i], torch.stack(wanted), rtol=1e-4, atol=1e-4)


def test_the_loss_is_that_of_the_formula(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    home: Any = valuation
    real = home.train_value

    def train_value(*args: Any, also: Any, **settings: Any) -> Any:
        seen.append(also)
        return real(*args, also=also, **settings)

    monkeypatch.setattr(valuation, "train_value", train_value)
    given = context(llama)
    PrefCTRL(margin=0.7, anchor=0.3, epochs=1).fit(given)
    ends, weight = module.last_states(given), torch.linspace(-1, 1, tiny.WIDTH)
    rows = [2, 0, 7]
    y, w, o = (torch.stack([ends[i][side] @ weight for i in rows]) for side in range(3))
    wanted = 0.7 * (1 + (o - w).exp()).log().mean() + 0.3 * (y - w).square().mean()
    found = seen[0](lambda states: states @ weight, rows)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert float(seen[0](lambda states: states @ weight, [10**6])) == 0.0


def test_weights_below_zero_are_refused(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match="margin must be a finite number of 0 or more, not -1"):
        PrefCTRL(margin=-1.0).fit(context(llama))


def test_a_step_and_its_relative_length_exclude_each_other() -> None:
    with pytest.raises(SteerbenchError, match="step_size and relative_norm exclude each other"):
        PrefCTRL(step_size=0.5, relative_norm=0.1)
