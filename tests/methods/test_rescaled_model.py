"""The same model in other units: its residual stream is 64 times as long and its logits are equal.

A method that steers it by the same amount has no unit that belongs to one model.
"""

from typing import Any

import pytest
import torch
from thorough import mostly_slow
from torch import Tensor

from steerbench import Decoding, FitContext, LanguageModel, Steering, load
from steerbench.contract import tiny
from steerbench.learn import Tokens, response_logits

TOKENS = [Tokens((5, 6, 7), (8, 9)), Tokens((10, 30, 12, 9), (11, 12, 13))]
METHODS = (
    "ablation",
    "act_add",
    "alignez",
    "caa",
    "iti",
    "random_direction",
    "repe",
    "shuffled_labels",
    "static_re",
)
FACTOR = 64.0


def rescaled() -> LanguageModel:
    """Return the tiny Llama with everything that is written to the residual stream multiplied by `FACTOR`."""
    lm = tiny.language_model("llama")
    model: Any = lm.model
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # not that of the embedding any more
    writers = [model.model.embed_tokens, *(b.self_attn.o_proj for b in model.model.layers)]
    with torch.no_grad():
        for module in (*writers, *(b.mlp.down_proj for b in model.model.layers)):
            module.weight.mul_(FACTOR)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon *= FACTOR**2
    return lm


def fitted(lm: LanguageModel, name: str, **fields: Any) -> Steering:
    context = FitContext(
        lm=lm, examples=tiny.examples()[:8], reward=tiny.VowelReward(), decoding=Decoding(max_new_tokens=6)
    )
    return load("methods", name)(**fields).fit(context)


def logits(lm: LanguageModel, steering: Steering) -> Tensor:
    return torch.cat([rows for _, rows in sorted(response_logits(lm, TOKENS, steering))])


@pytest.fixture(scope="module")
def models() -> tuple[LanguageModel, LanguageModel]:
    one, other = tiny.language_model("llama"), rescaled()
    torch.testing.assert_close(logits(one, Steering()), logits(other, Steering()), rtol=1e-5, atol=1e-6)
    return one, other


@pytest.mark.parametrize("name", mostly_slow(METHODS, lambda name: name != "alignez"))
def test_the_default_steers_both_alike(models: tuple[LanguageModel, LanguageModel], name: str) -> None:
    one, other = (logits(lm, fitted(lm, name)) for lm in models)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one, logits(models[0], Steering()), atol=1e-4)


@pytest.mark.parametrize("name", mostly_slow(["alignez", "repe"], lambda name: name == "repe"))
def test_the_published_step_does_not(models: tuple[LanguageModel, LanguageModel], name: str) -> None:
    one, other = (logits(lm, fitted(lm, name, relative_norm=None)) for lm in models)
    assert not torch.allclose(one, other, atol=1e-3)
