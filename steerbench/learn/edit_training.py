"""Train edits on pairs of replies: gradients pass through the frozen model into what the edits are made of.

A loss says what is good: `steerbench.learn.losses` has those of the methods. A mini-batch is taken apart into
micro-batches that fit the memory; their gradients are added up. Pairs of one group in five are held out, and the epoch
is kept at which their loss is lowest. Hundreds of steps of Adam amplify rounding: another batch size, device or number
of threads is like another seed.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from steerbench.engine.activations import drawn_from
from steerbench.engine.gradients import trainable
from steerbench.engine.logits import log_probs
from steerbench.errors import SteerbenchError
from steerbench.learn.context import FitContext, Pair
from steerbench.learn.probes import hold_out
from steerbench.models.batching import halving
from steerbench.models.language_model import Batch, LanguageModel, Tokens
from steerbench.models.modes import evaluating
from steerbench.models.sites import Site
from steerbench.steering.parts import PlacedEdit

SCORED = 64
"""Most pairs held out that are scored after an epoch."""
ALIKE = 8
"""Mini-batches that are drawn together and parted by length."""
Loss = Callable[[Sequence[Pair], "Trial"], Tensor]
"""The loss of each of some pairs, (pairs,), with gradients: made of what the trial says of their replies."""


@dataclass(frozen=True, kw_only=True)
class EditTraining:
    """How edits are trained, by AdamW."""

    lr: float
    """At its highest."""
    batch_size: int
    """Pairs in a step."""
    epochs: int
    """Most passes over the pairs."""
    weight_decay: float = 0.0
    """Share of a parameter that it loses per step, times the learning rate."""
    warmup: float = 0.0
    """Share of all steps over which the learning rate rises from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls behind the warm-up, to 0 at the last step of the last epoch."""
    patience: int = 3
    """Epochs without progress on the pairs held out after which training ends."""

    def __post_init__(self) -> None:
        for name, low in {"batch_size": 1, "epochs": 0, "patience": 1, "weight_decay": 0, "warmup": 0}.items():
            if not low <= getattr(self, name) < math.inf:
                raise SteerbenchError(f"{name}={getattr(self, name)} is out of range; give {low} or more.")
        if not 0 < self.lr < math.inf:
            raise SteerbenchError(f"lr={self.lr} is out of range; give a number above 0.")

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, from 0, as a share of the highest."""
        rising = self.warmup * steps
        if step < rising:
            return (step + 1) / (rising + 1)
        left = 1 - (step - rising) / max(steps - rising, 1)
        return {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[self.decay]


class TrainedEdits(NamedTuple):
    """What a training came to; the edits themselves were trained in place."""

    losses: list[float]
    """Mean loss of the pairs trained on, by epoch."""
    held_out: list[float]
    """Mean loss of the pairs held out, first before the training and then by epoch; empty where none was."""
    best_epoch: int
    """Epochs after which the edits are kept as they were; 0 only where there was no epoch."""

    def report(self) -> dict[str, Any]:
        """Return what a record should say."""
        shown = {"loss": self.losses, "held_out_loss": self.held_out}
        return {"best_epoch": self.best_epoch, **{k: [round(x, 5) for x in v] for k, v in shown.items()}}


class TrainedVector(NamedTuple):
    """A vector that was learned, and what there is to say about its training."""

    vector: Tensor
    """(width,), on the CPU."""
    report: dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """What a loss may ask of the model under the edits that are being trained."""

    lm: LanguageModel
    """The frozen model."""
    edits: Sequence[PlacedEdit]
    """Those being trained; others made of the same tensors may be given instead."""
    batch_size: int
    """Sequences in a pass."""
    generator: torch.Generator | None
    """For what a loss draws at a step of training. None where pairs held out are scored: draw nothing then."""
    unsteered: Callable[[], dict[Tokens, float]]
    """What `reference` looks up: the log-probability of each response by the unsteered model."""

    def log_probs(self, replies: Sequence[Tokens], edits: Sequence[PlacedEdit] | None = None) -> Tensor:
        """Return the log-probability of each whole response under the edits, (replies,), with gradients."""
        chosen = self.edits if edits is None else edits
        found: dict[int, Tensor] = {}
        for rows in self.lm.batches(replies, self.batch_size):
            found.update(zip(rows, _of_batch(self.lm, [replies[i] for i in rows], chosen), strict=True))
        return torch.stack([found[i] for i in range(len(replies))])

    def reference(self, replies: Sequence[Tokens]) -> Tensor:
        """Return the same of the unsteered model, (replies,), without gradients: computed once for all pairs."""
        known = self.unsteered()
        return torch.tensor([known[t] for t in replies], device=self.lm.device)


def leaf(lm: LanguageModel, site: Site, values: Tensor) -> Tensor:
    """Return a tensor to be trained: a copy in float32 on the device of its site, that asks for a gradient."""
    home = next(lm.anatomy.place(site).module.parameters()).device
    return values.detach().to(home, torch.float32, copy=True).requires_grad_()


def train_edits(
    context: FitContext,
    edits: Sequence[PlacedEdit],
    loss: Loss,
    training: EditTraining,
    *,
    pairs: Sequence[Pair] | None = None,
    saved: Path | None = None,
) -> TrainedEdits:
    """Train in place every parameter and buffer of the edits that asks for a gradient; see `leaf`.

    `pairs` are those of the train split unless given. With fewer than five groups none is held out, and the last epoch
    is kept. In the file `saved` the training keeps its state after each epoch, and from there the same training goes
    on where it was broken off, to the same bytes. Raises SteerbenchError where nothing asks for a gradient, where the
    loss does not depend on it, and where training diverges.
    """
    pairs = context.pairs() if pairs is None else pairs
    tensors = list({id(t): t for p in edits for t in (*p.edit.parameters(), *p.edit.buffers())}.values())
    run = _Run(context, edits, loss, training, [t for t in tensors if t.requires_grad], pairs)
    return run.through(saved)


class _Run:
    """One training under way."""

    def __init__(
        self,
        context: FitContext,
        edits: Sequence[PlacedEdit],
        loss: Loss,
        training: EditTraining,
        parameters: Sequence[Tensor],
        pairs: Sequence[Pair],
    ) -> None:
        if not parameters:
            raise SteerbenchError("no parameter or buffer of the edits asks for a gradient; make it with `leaf`.")
        self._context, self._loss, self._training, self._parameters = context, loss, training, parameters
        held_out = hold_out(context, pairs)
        self._train = [p for p, out in zip(pairs, held_out, strict=True) if not out]
        scored = [p for p, out in zip(pairs, held_out, strict=True) if out][:SCORED]
        self._held_out = sorted(scored, key=_length)
        self._optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay)
        self._generator = context.generator("edit training")
        unsteered = partial(_unsteered, context, tuple(t for pair in pairs for t in pair))
        self._trial = partial(Trial, context.lm, edits, context.batch_size, unsteered=unsteered)
        self._size = max(context.batch_size // 2, 1)
        """Pairs in a micro-batch."""
        self._losses: list[float] = []
        self._scores: list[float] = []
        self._best: list[Tensor] = []

    def through(self, saved: Path | None) -> TrainedEdits:
        """Train to the end and leave the parameters as they were at their best, asking for no gradient."""
        with self._context.progress("training of edits", self._training.epochs * len(self._train)) as advance:
            if saved is not None and saved.exists():
                self._load(saved)
            else:
                self._keep_best()
            advance(len(self._losses) * len(self._train))
            while len(self._losses) < self._training.epochs and not self._is_over():
                self._epoch(advance)
                self._keep_best()
                if saved is not None:
                    self._save(saved)
        with torch.no_grad():
            for parameter, value in zip(self._parameters, self._best, strict=True):
                parameter.copy_(value)
                parameter.requires_grad_(False)
                parameter.grad = None
        return TrainedEdits(self._losses, self._scores, self._best_epoch())

    def _is_over(self) -> bool:
        """Tell whether the pairs held out have gained nothing for as long as patience lasts."""
        return bool(self._held_out) and len(self._losses) - self._best_epoch() >= self._training.patience

    def _best_epoch(self) -> int:
        """Return the epoch, from 1, after which the pairs held out were scored best; the last one where none was."""
        trained = self._scores[1:]
        return trained.index(min(trained)) + 1 if trained else len(self._losses)

    def _epoch(self, advance: Callable[[int], object]) -> None:
        """Take one pass over the pairs, in an order of its own."""
        batches, total = self._batches(), 0.0
        for i, batch in enumerate(batches):
            share = self._training.rate(len(self._losses) * len(batches) + i, self._training.epochs * len(batches))
            for group in self._optimizer.param_groups:
                group["lr"] = self._training.lr * share
            total += self._step(batch)
            advance(len(batch))
        self._losses.append(total / len(self._train))

    def _batches(self) -> list[list[Pair]]:
        """Draw mini-batches of pairs of about one length, which need little padding, in an order of no meaning."""
        size = self._training.batch_size
        order = torch.randperm(len(self._train), generator=self._generator).tolist()
        drawn = [self._train[i] for i in order]
        alike = [
            pair
            for start in range(0, len(drawn), ALIKE * size)
            for pair in sorted(drawn[start:][: ALIKE * size], key=_length)
        ]
        batches = [alike[start : start + size] for start in range(0, len(alike), size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=self._generator).tolist()]

    def _step(self, batch: Sequence[Pair]) -> float:
        """Take one step on a mini-batch, micro-batch by micro-batch, and return the sum of its losses."""
        total = 0.0
        self._optimizer.zero_grad()
        for value, gradients in self._micro(batch, partial(self._gradients, self._trial(generator=self._generator))):
            total += value
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                share = gradient / len(batch)
                parameter.grad = share if parameter.grad is None else parameter.grad + share
        self._optimizer.step()
        if not math.isfinite(total) or not all(bool(p.isfinite().all()) for p in self._parameters):
            raise SteerbenchError("training of the edits diverged; lower its learning rate.")
        return total

    def _micro(self, pairs: Sequence[Pair], work: Callable[[Sequence[Pair]], Any]) -> Iterator[Any]:
        """Yield `work` of a few pairs at a time; where the memory runs out, of fewer from then on."""
        size, largest = min(self._size, len(pairs)), 0
        rows = [list(range(start, min(start + size, len(pairs)))) for start in range(0, len(pairs), size)]
        for done, found in halving(rows, lambda chosen: work([pairs[i] for i in chosen])):
            largest = max(largest, len(done))
            yield found
        self._size = self._size if largest == size else largest

    def _gradients(self, trial: Trial, pairs: Sequence[Pair]) -> tuple[float, Sequence[Tensor]]:
        """Return the sum of the losses of some pairs, and its gradient for each parameter."""
        with torch.enable_grad():
            value = self._loss(pairs, trial).sum()
            if not value.requires_grad:
                raise SteerbenchError("the loss does not depend on the edits; no gradient reaches them.")
            return float(value.detach()), torch.autograd.grad(value, list(self._parameters), materialize_grads=True)

    @torch.no_grad()
    def _keep_best(self) -> None:
        """Score the pairs held out, and keep the parameters if they are the best so far."""
        if self._held_out:
            trial = self._trial(generator=None)
            sums = self._micro(self._held_out, lambda pairs: float(self._loss(pairs, trial).detach().sum()))
            self._scores.append(sum(sums) / len(self._held_out))
        if self._best_epoch() == len(self._losses):
            self._best = [p.detach().clone() for p in self._parameters]

    def _save(self, path: Path) -> None:
        """Write all that the rest of the training depends on, whole or not at all."""
        state = {
            "training": repr((self._training, len(self._train), len(self._held_out))),
            "parameters": [p.detach() for p in self._parameters],
            "best": self._best,
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "losses": self._losses,
            "scores": self._scores,
        }
        partial_file = path.with_name(path.name + ".part")
        torch.save(state, partial_file)
        partial_file.replace(path)

    @torch.no_grad()
    def _load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        if state["training"] != repr((self._training, len(self._train), len(self._held_out))):
            raise SteerbenchError(f"{path} is of another training; delete it, or name another file.")
        for parameter, value in zip(self._parameters, state["parameters"], strict=True):
            parameter.copy_(value)
        self._best = [value.to(p.device) for p, value in zip(self._parameters, state["best"], strict=True)]
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self._losses, self._scores = state["losses"], state["scores"]


def _length(pair: Pair) -> int:
    return max(len(t.prompt) + len(t.response) for t in pair)


def _of_batch(lm: LanguageModel, replies: Sequence[Tokens], edits: Sequence[PlacedEdit]) -> Iterator[Tensor]:
    """Yield the log-probability of each response of one batch under the edits, a number with a gradient."""
    lm.check_fit(replies, 0)
    batch = lm.right_padded(replies)
    with evaluating(lm.model), trainable(lm, edits, batch):
        first = min(batch.prompt_ends) - 1
        out = _logits_from(lm, batch, first)
        for one, row in zip(replies, out, strict=True):
            drawn = drawn_from(one)
            logits = row[drawn.start - first : drawn.stop - first].float()
            target = torch.tensor(one.response, device=logits.device)[:, None]
            yield (logits.gather(-1, target)[:, 0] - logits.logsumexp(-1)).sum()


def _logits_from(lm: LanguageModel, batch: Batch, first: int) -> Tensor:
    """Return the logits from a column on, (batch, columns, vocabulary): most models need not make the others."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if "logits_to_keep" in inspect.signature(lm.model.forward).parameters:
        logits: Tensor = lm.model(**inputs, logits_to_keep=batch.input_ids.shape[1] - first).logits
        return logits
    whole: Tensor = lm.model(**inputs).logits
    return whole[:, first:]


def _unsteered(context: FitContext, replies: tuple[Tokens, ...]) -> dict[Tokens, float]:
    """Return the log-probability of each whole response by the unsteered model, computed once per run."""

    def compute() -> dict[Tokens, float]:
        distinct = list(dict.fromkeys(replies))
        found = log_probs(context.lm, distinct, batch_size=context.batch_size)
        return {t: float(each.sum()) for t, each in zip(distinct, found, strict=True)}

    return context.once(("unsteered log-probabilities", replies), compute)
