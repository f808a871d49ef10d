"""The last blocks of a reward, trained beside its head; it stops where validation no longer gets better.

It begins from the head on frozen states, with float32 weights and bfloat16 autocast where the processor has it. After
every part of an epoch the loss on validation is measured: the best weights are in the reward's folder at any time, and
the latest beside them, from which an interrupted training goes on.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from steerbench.files import write_whole
from steerbench.models.batching import padding_id
from steerbench.models.checkpoint import find, load_tokenizer
from steerbench.models.machine import fast_dtype
from steerbench.models.pooled_block import HEAD, PooledHead, load_pooled, read_form, with_backbone
from steerbench.progress import Progress
from steerbench.records.identity import fingerprint
from steerbench.reward_training.kept_states import Reader
from steerbench.reward_training.reward_folder import write_weights
from steerbench.reward_training.scenes import SceneTokens, read_apart
from steerbench.seeds import seed_for

RATE: Final = 2e-5
"""Of AdamW. The head begins where the frozen one ended."""
EPOCHS: Final = 3
PARTS: Final = 4
"""Measurements on validation in an epoch."""
PATIENCE: Final = 3
"""Measurements in a row without a better one, after which it stops."""
LATEST: Final = "latest.safetensors"


def finetune(
    out: Path, n_blocks: int, train: Sequence[SceneTokens], validation: Sequence[SceneTokens], tuning: "Tuning"
) -> dict[str, Any]:
    """Train the last `n_blocks` of the reward in a folder, and its head; return the losses on validation.

    The folder then holds the weights with the least of them, which may be those it began with.
    """
    course = _Finetuning(out, n_blocks, tuning, train)
    course.resume()
    every = max(1, len(train) // (PARTS * tuning.batch_size))
    steps = EPOCHS * PARTS * every
    with tuning.progress(f"train the last {n_blocks} blocks", steps) as advance:
        advance(course.step)
        while course.step < steps and not course.finished:
            if course.step // every == len(course.losses):  # measured once, by an interrupted training too
                course.measure(validation)
            course.learn(_batch(train, course.step, tuning.batch_size))
            advance(1)
    if len(course.losses) == steps // every:
        course.measure(validation)
    (out / LATEST).unlink(missing_ok=True)
    return {"blocks": n_blocks, "rate": RATE, "steps": course.step, "validation losses": course.losses}


class Tuning:
    """How and where the last blocks are trained."""

    def __init__(self, device: torch.device, batch_size: int, length_slope: float, progress: Progress) -> None:
        """`length_slope` is that of the frozen head's covariate, 0 where there is none."""
        self.device, self.batch_size, self.length_slope, self.progress = device, batch_size, length_slope, progress


class _Finetuning:
    """Weights, optimiser and losses so far."""

    def __init__(self, out: Path, n_blocks: int, tuning: Tuning, train: Sequence[SceneTokens]) -> None:
        source = with_backbone(find(str(out)))
        self.out, self.form, self.tuning = out, read_form(out)._replace(tuned_blocks=n_blocks), tuning
        model, head = load_pooled(source, torch.float32)
        if not isinstance(head, PooledHead):
            raise TypeError("a reward of this form ends in a head")
        self.head = head.to(tuning.device)
        self.pad_id = padding_id(load_tokenizer(source), model)
        self.of = fingerprint([self.form.write(), source.revision, [scene.key for scene in train]])
        """Another training has another one, and does not go on from here."""
        self.autocast = fast_dtype(tuning.device) == torch.bfloat16
        block = self.form.block
        self.weights = {
            f"blocks.{i}.{name}": parameter.requires_grad_()
            for i in range(block - n_blocks + 1, block + 1)
            for name, parameter in self.head.states.stack[i].named_parameters()
        }
        self.weights[HEAD[0]] = self.head.weight = nn.Parameter(self.head.weight)
        slope = [nn.Parameter(torch.tensor(tuning.length_slope, device=tuning.device))] if tuning.length_slope else []
        self.weights |= dict(zip(["length"], slope, strict=False))
        self.optimiser = torch.optim.AdamW(self.weights.values(), lr=RATE, weight_decay=0.0)
        self.step, self.losses = 0, list[float]()
        self.best: dict[str, Tensor] = {}

    @property
    def finished(self) -> bool:
        """Whether the last measurements were none better than the best before."""
        return len(self.losses) > PATIENCE and min(self.losses[-PATIENCE:]) >= min(self.losses[:-PATIENCE])

    def margins(self, scenes: Sequence[SceneTokens]) -> Tensor:
        """Return the score of the chosen reply less that of the other, and what length adds in the fit, (pairs,)."""
        with torch.autocast(self.tuning.device.type, torch.bfloat16, enabled=self.autocast):
            states = read_apart(self.head.states, scenes, self.pad_id)[:, :, 0].float()
        scores = states @ self.head.weight
        logs = torch.tensor(np.log1p([scene.lengths for scene in scenes]), device=scores.device).float()
        slope = self.weights.get("length", torch.zeros((), device=scores.device))
        return scores[:, 0] - scores[:, 1] + slope * (logs[:, 0] - logs[:, 1])

    def learn(self, scenes: Sequence[SceneTokens]) -> None:
        """Take one step on some pairs."""
        loss = -functional.logsigmoid(self.margins(scenes)).mean()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimiser.step()
        self.step += 1

    @torch.no_grad()
    def measure(self, scenes: Sequence[SceneTokens]) -> None:
        """Measure the loss on validation, and keep the weights: the best as the reward, the latest to go on from."""
        size = self.tuning.batch_size
        parts = [self.margins(scenes[i : i + size]) for i in range(0, len(scenes), size)]
        self.losses.append(float(-functional.logsigmoid(torch.cat(parts)).mean()))
        if self.losses[-1] <= min(self.losses):
            self.best = {name: weight.detach().clone() for name, weight in self.weights.items() if name != "length"}
        write_weights(self.out, {**self.best, HEAD[1]: self.head.bias})
        write_whole(self.out / "config.json", self.form.write())
        told = {"step": str(self.step), "losses": json.dumps(self.losses), "of": self.of}
        write_whole(self.out / LATEST, save(self._state(), told))

    def _state(self) -> dict[str, Tensor]:
        moments = {
            f"{key}|{name}": value.contiguous()
            for name, weight in self.weights.items()
            for key, value in self.optimiser.state[weight].items()
        }
        best = {f"best|{name}": weight.contiguous() for name, weight in self.best.items()}
        return {name: weight.detach().contiguous() for name, weight in self.weights.items()} | moments | best

    def resume(self) -> None:
        """Go on from the latest weights, if an interrupted training of the same blocks left some."""
        path = self.out / LATEST
        if not path.is_file():
            return
        with safe_open(path, framework="pt", device=str(self.tuning.device)) as file:
            said, found = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if said["of"] != self.of:
            return
        for name, weight in self.weights.items():
            weight.data.copy_(found[name])
            own = {key.partition("|")[0]: value for key, value in found.items() if key.endswith(f"|{name}")}
            if "best" in own:
                self.best[name] = own.pop("best")
            if own:
                self.optimiser.state[weight] = own
        self.step, self.losses = int(said["step"]), json.loads(said["losses"])


def _batch(train: Sequence[SceneTokens], step: int, size: int) -> list[SceneTokens]:
    """Return the pairs of a step: each epoch has its own order, the same in every process."""
    per_epoch = max(1, len(train) // size)
    epoch, at = divmod(step, per_epoch)
    order = list(range(len(train)))
    random.Random(seed_for(0, "finetune", epoch)).shuffle(order)
    return [train[i] for i in order[at * size : (at + 1) * size]]


def tuned_scores(out: Path, device: torch.device, batch_size: int, progress: Progress) -> Callable[..., Any]:
    """Return what scores scenes with the reward in a folder, (scenes, replies), as the harness will."""
    source = with_backbone(find(str(out)))
    model, head = load_pooled(source, None)
    head.to(device)
    if not isinstance(head, PooledHead):
        raise TypeError("a reward of this form ends in a head")
    reader = Reader(head.states, padding_id(load_tokenizer(source), model), batch_size)
    weight, bias = head.weight.cpu(), head.bias.cpu()

    def score(scenes: Sequence[SceneTokens]) -> Any:
        with progress("score with the trained blocks", len(scenes)) as advance:
            states = reader.read(scenes, joined=False)
            advance(len(scenes))
        return (states[:, :, 0] @ weight + bias).double().numpy()

    return score
