"""BiPO: its loss against the formula written out naively, and the planted direction."""

import math

import pytest
import torch
from planted_pairs import Given, planted, reply_log_prob, trial_of
from thorough import mostly_slow
from torch import Tensor

from steerbench import LanguageModel, load
from steerbench.contract import tiny
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.learn import BidirectionalDPO, Pair, Tokens

PAIRS = [
    Pair(Tokens((5, 6), (7, 8, 9)), Tokens((5, 6), (10,))),
    Pair(Tokens((11,), (12,)), Tokens((11,), (13, 14, 15))),
]
SITE = Site("resid_post", 1)
VECTOR = torch.linspace(-4, 4, tiny.WIDTH)


def naive(lm: LanguageModel, pair: Pair, vector: Tensor, d: int, beta: float) -> float:
    """Return -log sigmoid(d beta (log p_dv(w) / p(w) - log p_dv(l) / p(l))), one response after the other."""
    block = lm.model.model.layers[1]
    ratios = []
    for reply in pair:
        plain = float(reply_log_prob(lm, reply))
        handle = block.register_forward_hook(lambda m, a, out: out + d * vector)
        ratios.append(float(reply_log_prob(lm, reply)) - plain)
        handle.remove()
    return math.log(1 + math.exp(-d * beta * (ratios[0] - ratios[1])))


def both_ways(vector: Tensor, beta: float) -> BidirectionalDPO:
    forward, backward = ([PlacedEdit(SITE, Add(vector, sign), "all")] for sign in (1.0, -1.0))
    return BidirectionalDPO(forward, backward, beta)


def test_the_loss_is_that_of_the_formula(llama: LanguageModel) -> None:
    found = both_ways(VECTOR, 0.5)(PAIRS, trial_of(llama, [], PAIRS))
    wanted = [(naive(llama, p, VECTOR, 1, 0.5) + naive(llama, p, VECTOR, -1, 0.5)) / 2 for p in PAIRS]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-4)


def test_each_mini_batch_draws_a_sign(llama: LanguageModel) -> None:
    generator = torch.Generator().manual_seed(0)
    loss, trial = both_ways(VECTOR, 0.5), trial_of(llama, [], PAIRS, generator)
    drawn = {round(float(loss(PAIRS[:1], trial)), 3) for _ in range(12)}
    assert drawn == {round(naive(llama, PAIRS[0], VECTOR, d, 0.5), 3) for d in (1, -1)}


def test_at_zero_the_loss_is_log_2(llama: LanguageModel) -> None:
    found = both_ways(VECTOR * 0, 0.1)(PAIRS, trial_of(llama, [], PAIRS))
    torch.testing.assert_close(found, torch.full((2,), math.log(2)))


def test_the_reversed_vector_wants_the_reversed_pair(llama: LanguageModel) -> None:
    """L(d = -1, v, (w, l)) = L(d = 1, -v, (l, w))."""
    for pair in PAIRS:
        turned = naive(llama, Pair(pair.rejected, pair.chosen), -VECTOR, 1, 0.5)
        assert naive(llama, pair, VECTOR, -1, 0.5) == pytest.approx(turned, abs=1e-4)


@pytest.mark.parametrize("seed", mostly_slow(range(5), lambda seed: seed == 0))
def test_it_finds_the_planted_direction(seed: int) -> None:
    """Adam moves all components about equally far, so the planted one has components of equal size."""
    there = planted(seed)
    steering = load("methods", "bipo")(layer=2, lr=0.05, batch_size=4).fit(there.context)  # type: ignore[call-arg]
    (placed,) = steering.edits
    assert isinstance(placed.edit, Add)
    assert float(torch.cosine_similarity(placed.edit.vector, there.residual, dim=0)) >= 0.9
    assert there.context.report["held_out_loss"][-1] < 0.1 < math.log(2)


def test_a_trained_vector_is_shared_by_trials_of_its_length() -> None:
    context: Given = planted(0, pairs=10).context
    one, other = (load("methods", "bipo")(layer=2, relative_norm=r).fit(context) for r in (0.1, 0.2))  # type: ignore[call-arg]
    (a,), (b,) = one.edits, other.edits
    assert isinstance(a.edit, Add)
    assert isinstance(b.edit, Add)
    torch.testing.assert_close(2 * a.edit.vector, b.edit.vector)
