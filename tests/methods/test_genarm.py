"""GenARM: its adapter, its loss, and what it adds, each against the formula."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from steerbench import Decoding, FitContext, LanguageModel, Steering, generate, load
from steerbench.contract import tiny
from steerbench.contract.case import close
from steerbench.data import user
from steerbench.edits import LowRank, PlacedEdit, Reweighting, Site
from steerbench.learn import AdapterTraining, Tokens, log_probs, response_logits, train_autoregressive_reward
from steerbench.learn.autoregressive_reward import _fresh, response_log_probs

PROMPTS = [user("How do I bake a cake?"), user("Hi"), user("Why is the sky blue?")]
TOKENS = Tokens((5, 6), (70, 80, 90))
SAMPLED = Decoding(max_new_tokens=5, temperature=1.0)


def context(lm: LanguageModel, n: int = 8) -> FitContext:
    return FitContext(lm=lm, examples=tiny.examples()[:n], reward=tiny.VowelReward())


def training(**more: Any) -> AdapterTraining:
    return AdapterTraining(**{"rank": 4, "lr": 5e-3, "beta": 0.05, "epochs": 1, "batch_size": 8, **more})


def genarm(lm: LanguageModel, **fields: Any) -> Steering:
    steering: Steering = load("methods", "genarm")(**fields).fit(context(lm))
    return steering


def scored(lm: LanguageModel, steering: Steering) -> torch.Tensor:
    ((_, logits),) = response_logits(lm, [TOKENS], steering)
    return logits


def test_the_adapter_is_one_of_the_weights(llama: LanguageModel) -> None:
    """At the input of W it is W + (W up) down, and at the output W + up (down W)."""
    generator = torch.Generator().manual_seed(0)
    down, up = 0.1 * torch.randn(4, 32, generator=generator), 0.1 * torch.randn(32, 4, generator=generator)
    edits = tuple(PlacedEdit(Site(name, 1), LowRank(down, up), "all") for name in ("z", "mlp_out"))
    edited = scored(llama, Steering(edits=edits))
    block = llama.anatomy.blocks[1]
    with torch.no_grad():
        o_proj, down_proj = (block.get_parameter(f"{name}.weight") for name in ("self_attn.o_proj", "mlp.down_proj"))
        o_proj.add_(o_proj @ up @ down)
        down_proj.add_(up @ down @ down_proj)
    assert close(edited, scored(llama, Steering()))


def test_the_loss_is_that_of_the_paper_and_falls(llama: LanguageModel) -> None:
    lm, pairs = llama, context(llama).pairs()
    preferred = torch.stack([p.sum() for p in log_probs(lm, [p.chosen for p in pairs])])
    other = torch.stack([p.sum() for p in log_probs(lm, [p.rejected for p in pairs])])
    first = float(-logsigmoid(0.05 * (preferred - other)).mean())
    trained = train_autoregressive_reward(context(lm), training(epochs=20, lr=3e-2))
    assert trained.losses[0] == pytest.approx(first, rel=1e-4)
    assert trained.losses[-1] < 0.5 * first
    steering = Steering(edits=trained.edits)
    chosen, rejected = (log_probs(lm, side, steering) for side in zip(*pairs, strict=True))
    assert all(a.sum() > b.sum() for a, b in zip(chosen, rejected, strict=True))


def test_an_untrained_adapter_is_the_model_and_its_gradient_reaches_every_block(llama: LanguageModel) -> None:
    pairs = context(llama).pairs()[:2]
    edits = _fresh(context(llama), 4)
    tokens = [p.chosen for p in pairs]
    halves = torch.cat(response_log_probs(llama, tokens, edits))
    assert close(halves.detach(), torch.stack([p.sum() for p in log_probs(llama, tokens)]))
    torch.autograd.backward(halves.sum())
    assert len(edits) == 2 * llama.n_layers
    gradients = [p.edit.get_buffer("up").grad for p in edits]
    assert all(g is not None and bool(g.any()) for g in gradients)
    assert all(p.grad is None for p in llama.model.parameters())


def test_it_adds_the_log_probabilities_of_the_model_with_the_adapter(llama: LanguageModel) -> None:
    steering = genarm(llama, rank=4, lr=5e-2, epochs=3, batch_size=8, alpha=1.5)
    (part,) = steering.logits
    assert isinstance(part, Reweighting)
    assert part.twin
    adapted = scored(llama, Steering(edits=part.twin.edits or ())).log_softmax(-1)
    assert close(scored(llama, steering), scored(llama, Steering()) + 1.5 * adapted)
    together = generate(llama, PROMPTS, steering, SAMPLED)
    assert together == generate(llama, PROMPTS, steering, SAMPLED, batch_size=1)
    assert together != generate(llama, PROMPTS, Steering(), SAMPLED)


def test_the_model_as_its_own_reward_is_a_temperature(llama: LanguageModel, world: Path) -> None:
    """At 1 / (1 + alpha), whether it is named or has an adapter that does nothing."""
    expected = (scored(llama, Steering()) * 3.0).log_softmax(-1)
    named = genarm(llama, model=str(world / "lm"), alpha=2.0)
    assert close(scored(llama, named).log_softmax(-1), expected)
    idle = genarm(llama, lr=1e-30, alpha=2.0)
    assert close(scored(llama, idle).log_softmax(-1), expected)
    colder = Decoding(max_new_tokens=5, temperature=1 / 3)
    assert generate(llama, PROMPTS, idle, SAMPLED) == generate(llama, PROMPTS, Steering(), colder)
    contrast = genarm(llama, lr=1e-30, alpha=2.0, contrast=True)
    assert close(scored(llama, contrast), scored(llama, Steering()))
