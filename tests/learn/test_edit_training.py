"""Training of edits: the losses, their gradients, and what a training keeps, stops at, resumes and leaves alone."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_pairs import Given, planted, reply_log_prob, trial_of
from torch import Tensor
from torch.nn.functional import logsigmoid

from steerbench import LanguageModel, SteerbenchError
from steerbench.contract import tiny
from steerbench.edits import Add, PlacedEdit, Scope, Site
from steerbench.learn import (
    DPO,
    BidirectionalDPO,
    EditTraining,
    Pair,
    ScaledSimPO,
    Tokens,
    TrainedEdits,
    Trial,
    imitation,
    leaf,
    train_edits,
)

SITE = Site("resid_post", 1)
PAIRS = [
    Pair(Tokens((5, 6), (7, 8, 9)), Tokens((5, 6), (10,))),
    Pair(Tokens((11,), (12,)), Tokens((11,), (13, 14, 15, 16))),
    Pair(Tokens((21, 22, 23), (24, 25)), Tokens((21, 22, 23), (26,))),
]
VECTOR = torch.linspace(-1, 1, tiny.WIDTH)
PLAIN = EditTraining(lr=0.1, batch_size=4, epochs=3)

Losses = dict[str, Callable[[Tensor], Any]]


def placed(vector: Tensor, strength: float = 1.0, scope: Scope = "all") -> list[PlacedEdit]:
    return [PlacedEdit(SITE, Add(vector, strength), scope)]


LOSSES: Losses = {
    "imitation": lambda v: imitation,
    "dpo": lambda v: DPO(0.3),
    "bidirectional": lambda v: BidirectionalDPO(placed(v), placed(v, -1.0), 0.3),
    "simpo": lambda v: ScaledSimPO([placed(v, f) for f in (0.5, 1.0, 2.0)], placed(v, -1.0)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(llama: LanguageModel, name: str) -> None:
    """In float64, but for the norms, which compute in float32: hence the tolerance."""
    lm = LanguageModel(llama.model.double(), llama.tokenizer)

    def value(vector: Tensor) -> Tensor:
        total: Tensor = LOSSES[name](vector)(PAIRS, trial_of(lm, placed(vector), PAIRS)).sum()
        return total

    vector = leaf(lm, SITE, VECTOR)
    (gradient,) = torch.autograd.grad(value(vector), [vector])
    for d in torch.randn(4, tiny.WIDTH, generator=torch.Generator().manual_seed(0)):
        ahead, behind = (float(value(VECTOR + s * 2e-3 * d)) for s in (1, -1))
        assert (ahead - behind) / 4e-3 == pytest.approx(float(gradient @ d), rel=5e-3, abs=2e-3)
    assert float(gradient.abs().max()) > 1e-3


def test_losses_are_their_formulas(llama: LanguageModel) -> None:
    """Each response by itself, with the vector in a hook of our own."""

    def under(d: float, reply: Tokens) -> Tensor:
        handle = llama.model.model.layers[1].register_forward_hook(lambda m, a, out: out + d * VECTOR)
        found = reply_log_prob(llama, reply)
        handle.remove()
        return found

    trial = trial_of(llama, placed(VECTOR), PAIRS)
    for i, (w, o) in enumerate(PAIRS):
        gain_w, gain_o = (under(1, y) - under(0, y) for y in (w, o))
        m = {(d, y): under(d, y) / len(y.response) for d in (1, -1) for y in (w, o)}
        s, t = ((under(0, b) - under(0, a)).clamp_min(1) for a, b in ((w, o), (o, w)))
        wanted = {
            "imitation": -m[1, w],
            "dpo": -logsigmoid(0.3 * (gain_w - gain_o)),
            "simpo": -logsigmoid(s * m[1, w] - m[1, o]) - logsigmoid(t * m[-1, o] - m[-1, w]),
        }
        for name, value in wanted.items():
            found = LOSSES[name](VECTOR)(PAIRS, trial)[i]
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-4)


def trained(
    context: Given, training: EditTraining = PLAIN, loss: Any = None, **more: Any
) -> tuple[Tensor, TrainedEdits]:
    vector = leaf(context.lm, SITE, torch.zeros(tiny.WIDTH))
    found = train_edits(context, placed(vector), loss or DPO(), training, **more)
    return vector, found


def test_training_lowers_the_loss_and_leaves_the_model_alone() -> None:
    context = planted(0, pairs=20).context
    model = context.lm.model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    vector, found = trained(context)
    assert found.held_out[-1] < 0.6 < found.held_out[0] == pytest.approx(math.log(2))
    assert found.losses[-1] < found.losses[0]
    assert not vector.requires_grad
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_progress_counts_every_pair_as_it_is_trained_on_and_begins_before_the_first_score() -> None:
    context, seen = planted(0, pairs=20).context, []

    @contextmanager
    def counting(label: str, total: int) -> Iterator[Callable[[int], None]]:
        seen.append((label, total))
        yield lambda n: seen.append(("step", n))

    def loss(pairs: Sequence[Pair], trial: Trial) -> Tensor:
        assert seen
        return DPO()(pairs, trial)

    context.progress = counting
    training = EditTraining(lr=0.1, batch_size=4, epochs=2)
    trained(context, training, loss)
    ((label, total),) = (one for one in seen if one[0] != "step")
    steps = [n for name, n in seen if name == "step"]
    assert label == "training of edits"
    assert sum(steps) == total == 2 * 16
    assert max(steps) == 4


def test_micro_batches_add_up_to_the_batch() -> None:
    """In batches of one reply, of two and of sixteen; and where padding forbids more than one."""
    vectors = []
    for size, largest in ((2, None), (16, None), (16, 1)):
        context = planted(0, pairs=10).context
        context.batch_size, context.lm.largest_batch = size, largest
        vectors.append(trained(context, EditTraining(lr=0.1, batch_size=4, epochs=1))[0])
    for other in vectors[1:]:
        torch.testing.assert_close(vectors[0], other, rtol=1e-3, atol=1e-4)


def test_a_batch_that_does_not_fit_is_halved_once_and_counted_once() -> None:
    context, training = planted(0, pairs=10).context, EditTraining(lr=0.1, batch_size=4, epochs=1)
    whole = trained(context, training)[0]
    failed = []

    def scarce(pairs: Sequence[Pair], trial: Trial) -> Tensor:
        if len(pairs) > 1:
            failed.append(len(pairs))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return DPO()(pairs, trial)

    with pytest.warns(UserWarning, match="memory"):
        torch.testing.assert_close(trained(context, training, scarce)[0], whole, rtol=1e-3, atol=1e-4)
    assert failed == [2]


def test_the_seed_alone_decides() -> None:
    a, b = (trained(planted(0, pairs=10).context)[0] for _ in range(2))
    context = planted(0, pairs=10).context
    context.seed = 1
    other = trained(context)[0]
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


def bowl(pairs: Sequence[Pair], trial: Trial) -> Tensor:
    """Has its minimum at 1 for the pairs that are trained on, and at 0.3 for those held out."""
    (edit,) = trial.edits
    vector = edit.edit.get_buffer("vector")
    return (vector[0] - (0.3 if trial.generator is None else 1.0)).square().expand(len(pairs))


def test_the_best_epoch_is_kept_and_patience_ends_the_training() -> None:
    context = planted(0, pairs=20).context
    training = EditTraining(lr=0.05, batch_size=8, epochs=50, patience=3)
    vector, found = trained(context, training, bowl)
    assert len(found.losses) == found.best_epoch + 3 < 50
    assert found.held_out[found.best_epoch] == min(found.held_out)
    assert float((vector[0] - 0.3) ** 2) == pytest.approx(min(found.held_out))


def test_pairs_of_one_prompt_stand_on_one_side() -> None:
    context = planted(0, pairs=20).context
    sides: dict[bool, set[tuple[int, ...]]] = {True: set(), False: set()}

    def noting(pairs: Sequence[Pair], trial: Trial) -> Tensor:
        sides[trial.generator is None] |= {p.chosen.prompt for p in pairs}
        return bowl(pairs, trial)

    trained(context, loss=noting, pairs=context.given * 2)
    assert len(sides[True]) == 4
    assert len(sides[False]) == 16
    assert not sides[True] & sides[False]


def test_with_few_groups_the_last_epoch_is_kept() -> None:
    context = planted(0, pairs=4).context
    found = trained(context, loss=bowl)[1]
    assert found.held_out == []
    assert found.best_epoch == len(found.losses) == 3


class Broken(Exception):
    """Ends a training where a test wants it."""


def test_what_was_broken_off_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    context, training = planted(0, pairs=20).context, EditTraining(lr=0.1, batch_size=4, epochs=4, decay="cosine")
    whole, calls, saved = trained(context, training)[0], [0], tmp_path / "state"

    def breaking(pairs: Sequence[Pair], trial: Trial) -> Tensor:
        calls[0] += 1
        if calls[0] == 12:
            raise Broken
        return DPO()(pairs, trial)

    with pytest.raises(Broken):
        trained(context, training, breaking, saved=saved)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    resumed, found = trained(context, training, saved=saved)
    assert torch.equal(whole, resumed)
    assert len(found.losses) == 4
    with pytest.raises(SteerbenchError, match=r"is of another training; delete it, or name another file"):
        trained(context, saved=saved)


def test_what_cannot_be_trained_is_told(llama: LanguageModel) -> None:
    context = planted(0, pairs=6).context
    with pytest.raises(SteerbenchError, match=r"asks for a gradient; make it with `leaf`"):
        train_edits(context, placed(torch.zeros(tiny.WIDTH)), DPO(), PLAIN)
    with pytest.raises(SteerbenchError, match="no gradient reaches them"):
        trained(context, loss=lambda pairs, trial: torch.zeros(len(pairs)))
    with pytest.raises(SteerbenchError, match="diverged; lower its learning rate"):
        trained(context, loss=lambda pairs, trial: bowl(pairs, trial) * math.nan)
    for wrong in ({"lr": 0.0}, {"batch_size": 0}, {"epochs": -1}, {"patience": 0}):
        with pytest.raises(SteerbenchError, match=f"{min(wrong)}=.* is out of range"):
            EditTraining(**{"lr": 0.1, "batch_size": 1, "epochs": 1, **wrong})  # type: ignore[arg-type]


def test_the_learning_rate_rises_and_falls() -> None:
    rates = {
        decay: [EditTraining(lr=1, batch_size=1, epochs=1, warmup=0.2, decay=decay).rate(i, 10) for i in range(10)]
        for decay in ("constant", "linear", "cosine")
    }
    assert rates["constant"] == pytest.approx([1 / 3, 2 / 3] + [1] * 8)
    assert rates["linear"][2:] == pytest.approx([1 - i / 8 for i in range(8)])
    assert rates["cosine"][2:] == pytest.approx([(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)])


def test_a_leaf_is_a_copy(llama: LanguageModel) -> None:
    given = torch.zeros(3)
    held = leaf(llama, SITE, given)
    assert held.requires_grad
    held.data += 1
    assert not given.any()
