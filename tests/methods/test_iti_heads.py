"""Which heads ITI chooses: planted ones, on pairs held out, by probes that have not seen them."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fitted_iti import EXAMPLES, HEADS, context, iti, pairs_of, vectors
from torch import Tensor

from steerbench import Example, FitContext, LanguageModel
from steerbench.data import user
from steerbench.edits import Site
from steerbench.learn import Contrast, Pair, Tokens
from steerbench.learn.probes import hold_out, logistic_probe

# Ranking


def crafted(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, state: Callable[[int, bool, int], Tensor]
) -> FitContext:
    """Return a context of 40 pairs whose states are `state(pair, preferred, layer)`, (heads, d_head)."""
    examples = [Example(str(i), str(i), user(f"Question {i}?"), f"Yes {i}.", f"No {i}.") for i in range(40)]
    made = context(lm, examples)
    rows = {
        tokens: (i, preferred)
        for i, pair in enumerate(made.pairs())
        for tokens, preferred in ((pair.chosen, True), (pair.rejected, False))
    }

    def read(site: Site, tokens: list[Tokens], pool: str) -> list[Tensor]:
        assert (site.name, pool) == ("z", "last_response")
        assert site.layer is not None
        return [state(*rows[t], site.layer).flatten() for t in tokens]

    monkeypatch.setattr(made, "activations_at", lambda sites, *rest: {site: read(site, *rest) for site in sites})
    return made


def test_heads_are_ranked_by_pairs_held_out(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Head (0, 0) is perfect on what probes learn from and wrong on the rest, head (1, 1) nearly the reverse."""
    noise = torch.Generator().manual_seed(0)

    def state(pair: int, preferred: bool, layer: int) -> Tensor:
        z = torch.randn(HEADS, 8, generator=noise)
        side = 1.0 if preferred else -1.0
        if layer == 0:
            z[0] = torch.full((8,), -side if held_out[pair] else side)
        if layer == 1:
            z[1] = torch.full((8,), side if held_out[pair] or pair % 4 else -side)
        return z

    shared = crafted(llama, monkeypatch, state)
    held_out = hold_out(shared, shared.pairs()).tolist()
    iti(n_heads=12).fit(shared)
    heads = {(layer, head): accuracy for layer, head, accuracy in shared.report["heads"]}
    assert shared.report["heads"][0] == [1, 1, 1.0]
    assert shared.report["heads"][-1] == [0, 0, 0.0]
    assert len(heads) == 12
    assert shared.report["pairs"] == {"train": 32, "validation": 8}


@pytest.mark.parametrize("seed", range(10))
def test_a_planted_head_is_found(llama: LanguageModel, seed: int) -> None:
    """Random replies say nothing; the model is made to write +a u into head (1, 2) wherever it reads a chosen one."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0)

    def reply() -> str:
        return "".join(chr(97 + int(i)) for i in torch.randint(26, (6,), generator=generator))

    examples = [Example(str(i), str(i), user(f"Q{i}"), reply(), reply()) for i in range(40)]
    shared = context(llama, examples, seed=seed)
    chosen = {pair.chosen.prompt + pair.chosen.response for pair in shared.pairs()}
    signs: list[Tensor] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        rows = zip(kwargs["input_ids"].tolist(), kwargs["attention_mask"].sum(1).tolist(), strict=True)
        signs[:] = [torch.tensor([float(tuple(row[:n]) in chosen) for row, n in rows])]

    def plant(module: Any, args: Any) -> Any:
        z = args[0].clone()
        z[..., 16:24] += 6 * signs[0][:, None, None] * u
        return (z,)

    llama.model.register_forward_pre_hook(note, with_kwargs=True)
    llama.model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(plant)
    found = vectors(iti().fit(shared))
    assert shared.report["heads"][0] == [1, 2, 1.0]
    assert torch.cosine_similarity(found[1][2], u, dim=0) >= 0.95


def test_the_split_keeps_prompts_and_groups_whole(llama: LanguageModel) -> None:
    of_a_prompt = [Example(f"{i}", f"{i}", user(f"Q{i // 3}"), f"Yes {i}.", f"No {i}.") for i in range(60)]
    of_a_group = [Example(f"{i}", f"{i % 20}", user(f"Q{i}"), "Yes.", "No.") for i in range(60)]
    for seed, examples in itertools.product(range(5), (of_a_prompt, of_a_group)):
        held_out = hold_out(context(llama, examples, seed=seed), pairs_of(llama, examples)).tolist()
        alike = [e.prompt if examples is of_a_prompt else e.group for e in examples]
        train, rest = ({a for a, held in zip(alike, held_out, strict=True) if held is side} for side in (False, True))
        assert (len(train), len(rest)) == (16, 4)
        assert not train & rest


def test_pairs_of_other_prompts_are_split_by_prompt(llama: LanguageModel) -> None:
    pairs = [Pair(Tokens((5, i // 2), (6,)), Tokens((5, i // 2), (7,))) for i in range(40)]
    held_out = hold_out(context(llama, []), pairs)
    assert held_out.sum() == 8
    assert torch.equal(held_out[::2], held_out[1::2])


def test_the_split_is_drawn_from_the_seed(llama: LanguageModel) -> None:
    pairs = pairs_of(llama, EXAMPLES)
    splits = [tuple(hold_out(context(llama, seed=seed), pairs).tolist()) for seed in (0, 0, 1, 2, 3)]
    assert splits[0] == splits[1]
    assert len(set(splits)) > 2
    assert {sum(split) for split in splits} == {3}


@pytest.mark.parametrize(("n", "train", "validation"), [(1, 1, 1), (4, 4, 4), (5, 4, 1), (9, 8, 1), (10, 8, 2)])
def test_few_pairs_serve_both(llama: LanguageModel, n: int, train: int, validation: int) -> None:
    shared = context(llama, EXAMPLES[:n])
    assert iti().fit(shared).edits
    assert shared.report["pairs"] == {"train": train, "validation": validation}


# Probes


def test_a_probe_is_scored_on_what_it_has_not_seen() -> None:
    up, down = torch.ones(10, 2), -torch.ones(10, 2)
    held_out = torch.arange(10) >= 8
    wrong = held_out[:, None]
    probe = logistic_probe(Contrast(torch.where(wrong, down, up), torch.where(wrong, up, down)), held_out)
    assert probe.accuracy == 0
    assert (probe.coefficients > 0).all()
    assert logistic_probe(Contrast(up, down), torch.zeros(10, dtype=torch.bool)).accuracy == 1


def test_a_probe_that_does_not_converge_says_so(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = Contrast(*(torch.randn(20, 6, generator=torch.Generator().manual_seed(i)) for i in (0, 1)))
    none = torch.zeros(20, dtype=torch.bool)
    assert logistic_probe(sides, none).converged
    monkeypatch.setattr("steerbench.learn.probes.MAX_ITER", 1)
    assert not logistic_probe(sides, none).converged
    shared = context(llama)
    iti(n_heads=1).fit(shared)
    assert shared.report["probes_not_converged"] == 12
