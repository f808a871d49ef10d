"""An engine that runs packed sequences on transformers' own model: what vLLM does, without vLLM."""

import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerbench.decoding import Decoding
from steerbench.engine.backends.generation_engine import GenerationEngine
from steerbench.engine.backends.packed_edits import PackedEdits
from steerbench.engine.backends.packed_step import PackedStep
from steerbench.engine.backends.shipment import Shipped, fault_of, read, shipped_each, write
from steerbench.engine.sampling import drawn, uniforms, warpers
from steerbench.models.language_model import LanguageModel, Tokens
from steerbench.progress import Progress, silent
from steerbench.steering.parts import PlacedEdit
from steerbench.steering.steering import Steering


class PackedEngine(GenerationEngine):
    name = "packed"

    def fault(self, steering: Steering) -> str | None:
        if steering.logits:
            return f"the logits part {type(steering.logits[0]).__name__}"
        return next((fault for p in steering.edits if (fault := fault_of(p.edit))), None)

    def continued(
        self,
        lm: LanguageModel,
        prompts: Sequence[Tokens],
        edits: Sequence[PlacedEdit],
        decoding: Decoding,
        seeds: Sequence[Sequence[int]],
        *,
        endless: bool = False,
        batch_size: int = 16,
        progress: Progress = silent,
    ) -> list[list[list[int]]]:
        more: dict[str, Any] = {"endless": endless, "batch_size": batch_size}
        return self.continued_each(lm, [prompts], [edits], decoding, [seeds], **more)[0]

    def continued_each(
        self,
        lm: LanguageModel,
        prompts: Sequence[Sequence[Tokens]],
        edits: Sequence[Sequence[PlacedEdit]],
        decoding: Decoding,
        seeds: Sequence[Sequence[Sequence[int]]],
        *,
        endless: bool = False,
        batch_size: int = 16,
        progress: Progress = silent,
    ) -> list[list[list[list[int]]]]:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), shipped_each(lm, list(zip(prompts, edits, strict=True)), batch_size))
            acting = read(Path(folder))
        number = count()
        return [
            [
                [_continued(lm, i, list(prompt.prompt), acting, decoding, seed, endless) for seed in of_prompt]
                for prompt, of_prompt, i in zip(theirs, drawn_by, number, strict=False)
            ]
            for theirs, drawn_by in zip(prompts, seeds, strict=True)
        ]

    def peak_memory_mb(self) -> float:
        return 1.0


@torch.no_grad()
def _continued(
    lm: LanguageModel,
    number: int,
    prompt: list[int],
    edits: Sequence[Shipped],
    decoding: Decoding,
    seed: int,
    endless: bool,
) -> list[int]:
    numbers = uniforms(torch.Generator().manual_seed(seed), decoding.max_new_tokens)
    new: list[int] = []
    while len(new) < decoding.max_new_tokens and not set(new) & set(lm.end_ids):
        logits = _logits(lm, number, prompt, new, edits)
        if endless:
            logits[:, lm.end_ids] = -torch.inf
        for warper in warpers(decoding):
            logits = warper(None, logits)
        greedy = not decoding.temperature
        new.append(int(logits.argmax() if greedy else drawn(logits, numbers[len(new)][None])))
    return new


def _logits(lm: LanguageModel, number: int, prompt: list[int], new: list[int], edits: Sequence[Shipped]) -> Tensor:
    """Return the logits of the next token, (1, vocabulary), with all tokens read at once."""
    ids = [*prompt, *new]
    n = len(ids)
    step = PackedStep.of(torch.tensor([0, n]), torch.tensor([n]), torch.tensor([number]), torch.tensor([len(prompt)]))
    modules: dict[str, Any] = dict(lm.model.named_modules())
    groups: dict[tuple[str, str], list[Shipped]] = {}
    for one in edits:
        groups.setdefault((one.module, one.side), []).append(one)
    handles = []
    for (path, side), group in groups.items():
        module = modules[path] if path else lm.model.get_output_embeddings()
        handles.append(_hook(module, side, PackedEdits(group, torch.device("cpu")), step))
    try:
        logits: Tensor = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1].float()
    finally:
        for handle in handles:
            handle.remove()
    return logits


def _hook(module: Any, side: str, edits: PackedEdits, step: PackedStep) -> Any:
    def edited(h: Tensor) -> Tensor:
        return edits(h.reshape(-1, h.shape[-1]), step).reshape(h.shape)

    if side == "input":
        return module.register_forward_pre_hook(lambda _, args: (edited(args[0]), *args[1:]))
    return module.register_forward_hook(
        lambda _, args, out: edited(out) if isinstance(out, Tensor) else (edited(out[0]), *out[1:])
    )
