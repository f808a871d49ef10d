"""What runs inside of vLLM's worker: hooks that edit, mixed into its class by `worker_extension_cls`.

Hooks work where vLLM runs eagerly. A block may leave two tensors whose sum is the state; an edit then leaves the edited
state in the first and zero in the second.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context

from steerbench.engine.backends.packed_edits import PackedEdits
from steerbench.engine.backends.packed_step import PackedStep
from steerbench.engine.backends.shipment import Shipped, read
from steerbench.models.machine import peak_memory_mb, reset_peak_memory


class SteeredWorker:
    """Methods of a worker that `collective_rpc` calls; what they take and return is plain."""

    model_runner: Any
    _steerbench: "_Steered | None" = None

    def steerbench_steer(self, folder: str) -> None:
        """Install the edits of a folder in place of those there are."""
        self._steerbench_model().install(read(Path(folder)))

    def steerbench_rest(self) -> None:
        """Take all edits out."""
        self._steerbench_model().install([])

    def steerbench_watch(self, watching: bool) -> None:
        """Begin, or cease, to keep the states at the LM head."""
        self._steerbench_model().watched = [] if watching else None

    def steerbench_seen(self) -> list[tuple[int, int, list[float]]]:
        """Return prompt, position and state of each token that logits were computed for."""
        return self._steerbench_model().watched or []

    def steerbench_finite(self) -> bool:
        """Tell whether all logits were numbers since it was asked last.

        If not, the cache is emptied: zero times NaN is NaN, so that a block that held some spoils whoever has it next.
        """
        steered = self._steerbench_model()
        finite, steered.bad = steered.bad is None or not bool(steered.bad), None
        if not finite:
            for cache in self.model_runner.kv_caches:
                cache.zero_()
        return finite

    def steerbench_peak(self) -> float:
        """Return the peak memory in MB since it was asked last: of the device, or on a CPU of the process."""
        device = self._steerbench_model().device
        peak = peak_memory_mb(device)
        reset_peak_memory(device)
        return peak

    def _steerbench_model(self) -> "_Steered":
        if self._steerbench is None:
            self._steerbench = _Steered(self.model_runner)
        return self._steerbench


class _Steered:
    """A model of vLLM with edits in it."""

    def __init__(self, runner: Any) -> None:
        self._runner, self._model = runner, runner.get_model()
        self.device = next(self._model.parameters()).device
        self._handles: list[Any] = []
        self._final: PackedEdits | None = None
        self._step: PackedStep | None = None
        self._last: PackedStep | None = None
        self.watched: list[tuple[int, int, list[float]]] | None = None
        self.bad: Tensor | None = None
        self._compute_logits = self._model.compute_logits
        self._model.compute_logits = self._logits
        self._model.register_forward_pre_hook(self._note)

    def install(self, edits: list[Shipped]) -> None:
        """Find all places, then put the edits in, in place of those there are."""
        groups: dict[tuple[str, str], list[Shipped]] = {}
        for one in edits:
            groups.setdefault((one.module, one.side), []).append(one)
        final = groups.pop(("", "input"), None)
        found = [(self._module(path), side, group) for (path, side), group in groups.items()]
        for handle in self._handles:
            handle.remove()
        self._final = PackedEdits(final, self.device) if final else None
        self._handles = [self._hook(*place, side, PackedEdits(group, self.device)) for place, side, group in found]

    def _note(self, module: nn.Module, args: Any) -> None:
        """Find out which tokens a pass holds; a pass that only warms up holds none."""
        metadata = get_forward_context().attn_metadata
        self._step = self._last = None
        if not metadata:
            return
        of_layer = next(iter(metadata.values()))
        batch, requests = self._runner.input_batch, self._runner.requests
        n = batch.num_reqs
        numbers = [requests[r].sampling_params.extra_args["prompt"] for r in batch.req_ids[:n]]
        starts = of_layer.query_start_loc[: n + 1].long()
        ends = torch.as_tensor(batch.num_prompt_tokens[:n], device=starts.device).long()
        prompts = torch.tensor(numbers, device=starts.device)
        self._step = PackedStep.of(starts, of_layer.seq_lens[:n].long(), prompts, ends)
        self._last = self._step.at(starts[1:] - 1)

    def _logits(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Edit what the LM head reads, and compute the logits."""
        last = self._last
        if last is None:
            return self._compute_logits(hidden, *args, **kwargs)
        if len(hidden) != len(last.positions):
            raise RuntimeError(f"logits of {len(hidden)} tokens for {len(last.positions)} sequences")
        if self._final is not None:
            hidden = self._final(hidden, last)
        if self.watched is not None:
            rows = zip(last.prompts.tolist(), last.positions.tolist(), hidden.float().tolist(), strict=True)
            self.watched += list(rows)
        logits = self._compute_logits(hidden, *args, **kwargs)
        bad = ~torch.isfinite(logits.amax(-1)).all()
        self.bad = bad if self.bad is None else self.bad | bad
        return logits

    def _module(self, path: str) -> tuple[nn.Module, tuple[int, int]]:
        """Return the module of a path of transformers' model, and which of how many equal parts of its output it is."""
        modules = dict(self._model.named_modules())
        if path in modules:
            return modules[path], (0, 1)
        home, _, name = path.rpartition(".")
        for packed, parts in getattr(self._model, "packed_modules_mapping", {}).items():
            if name in parts and f"{home}.{packed}" in modules:
                return modules[f"{home}.{packed}"], (parts.index(name), len(parts))
        raise RuntimeError(f"steerbench: vLLM's {type(self._model).__name__} has no module {path}")

    def _hook(self, module: nn.Module, part: tuple[int, int], side: str, edits: PackedEdits) -> Any:
        if side == "input":
            names = list(inspect.signature(module.forward).parameters)
            return module.register_forward_pre_hook(self._before(names, edits), with_kwargs=True)

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            if self._step is None:
                return None
            if isinstance(output, Tensor):
                return self._edited(output, part, edits)
            first, *rest = output
            if len(rest) == 1 and isinstance(rest[0], Tensor) and rest[0].shape == first.shape:
                return self._edited(first + rest[0], part, edits), torch.zeros_like(first)
            return (self._edited(first, part, edits), *rest)

        return module.register_forward_hook(after)

    def _before(self, names: list[str], edits: PackedEdits) -> Callable[..., Any]:
        """Return a hook on the input of a module, whose arguments have these names."""
        state = names.index("hidden_states") if "hidden_states" in names else 0

        def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            if self._step is None:
                return None
            given = dict(zip(names, args, strict=False)) | kwargs
            h, residual = given[names[state]], given.get("residual")
            if residual is not None:
                h, given["residual"] = h + residual, torch.zeros_like(residual)
            given[names[state]] = edits(h, self._step)
            return tuple(given[name] for name in names[: len(args)]), {name: given[name] for name in kwargs}

        return before

    def _edited(self, output: Tensor, part: tuple[int, int], edits: PackedEdits) -> Tensor:
        """Edit an output, or one of its equal parts, where a module is several of transformers' in one."""
        assert self._step is not None
        index, count = part
        if count == 1:
            return edits(output, self._step)
        pieces = list(output.chunk(count, dim=-1))
        pieces[index] = edits(pieces[index], self._step)
        return torch.cat(pieces, dim=-1)
