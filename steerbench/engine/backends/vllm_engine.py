"""vLLM as the engine: continuous batching and a paged cache, with the edits as hooks in its worker.

The model is loaded a second time, in a process of vLLM's own. What is carried is tried out on the model before it is
trusted: see `engine_trial`.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from steerbench.decoding import Decoding
from steerbench.engine.backends.engine_trial import Trial, edits_to_try, told_apart, trial_prompts
from steerbench.engine.backends.generation_engine import GenerationEngine
from steerbench.engine.backends.shipment import Shipped, fault_of, shipped_each, write
from steerbench.engine.finiteness import not_finite, origin_of
from steerbench.errors import SteerbenchError
from steerbench.models.checkpoint import brief, find
from steerbench.models.language_model import LanguageModel, Tokens
from steerbench.models.sites import Site
from steerbench.progress import Progress, silent
from steerbench.steering.blocks import Blocks
from steerbench.steering.parts import DecodePart, PlacedEdit
from steerbench.steering.steering import Steering

_HOME = "steerbench.engine.backends"
_SETTINGS = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a copy of a process that has threads may hang
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # where each sequence stands is read off the first runner
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""What vLLM reads from the environment, where the user has set nothing else."""


class VllmEngine(GenerationEngine):
    """vLLM, started when it is first needed; `close` ends its process.

    `model` is a folder or a name on the Hub, as `LanguageModel.load` takes it. `prefix_caching` lets the candidates of
    one prompt share its cache, and nothing else: what an edit does depends on where a prompt ends, so that each prompt
    of each call has a salt of its own.
    """

    name = "vllm"

    def __init__(self, model: str, *, prefix_caching: bool = True) -> None:
        self._model, self._prefix_caching = model, prefix_caching
        self._llm: Any = None
        self._installed: Sequence[PlacedEdit] | None = ()
        """None: edits that differ between the prompts of one call."""
        self._tried: set[Site] | None = None
        self._salts = count()

    def fault(self, steering: Steering) -> str | None:
        """Return what of a steering cannot be carried: logits parts, blocks, states that are read off the prompt."""
        if steering.logits:
            return f"the logits part {type(steering.logits[0]).__name__}"
        part = steering.decode
        if part is not None and not _chooses_at_the_end(part):
            return f"the part {type(part).__name__}, which chooses in the middle of a response"
        return next((fault for p in steering.edits if (fault := fault_of(p.edit))), None)

    def continued(  # noqa: PLR0913
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
        """Return the new ids of each continuation of each prompt; see `GenerationEngine`."""
        more: dict[str, Any] = {"endless": endless, "batch_size": batch_size, "progress": progress}
        return self.continued_each(lm, [prompts], [edits], decoding, [seeds], **more)[0]

    def continued_each(  # noqa: PLR0913
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
        """Return what `continued` does for each of several steerings, all of them in one batch."""
        everyone, placed = list(chain.from_iterable(prompts)), tuple(chain.from_iterable(edits))
        lm.check_fit(everyone, decoding.max_new_tokens)
        self._start(lm)
        self._try_out(lm, placed)
        with progress("generate", len(everyone)) as advance:
            self._install(lm, list(zip(prompts, edits, strict=True)), batch_size)
            drawn = list(chain.from_iterable(seeds))
            found = iter(self._generated(lm, everyone, decoding, drawn, endless))
            advance(len(everyone))
        if not self._call("steerbench_finite"):
            raise not_finite(origin_of(Steering(edits=placed)))
        return [list(islice(found, len(theirs))) for theirs in prompts]

    @property
    def facts(self) -> dict[str, str]:
        """The version of vLLM, by the name of the distribution that is installed."""
        return {name: version(name) for name in distributions()}

    def peak_memory_mb(self) -> float:
        """Return the peak memory of vLLM's own process, or of its device, in MB."""
        return float(self._call("steerbench_peak"))

    def close(self) -> None:
        """End the process of vLLM."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            self._installed, self._tried = (), None

    def _start(self, lm: LanguageModel) -> None:
        if self._llm is not None:
            return
        check_installed()
        source = find(self._model)
        if source.gguf or source.base or getattr(lm.model.config, "quantization_config", None):
            raise SteerbenchError(
                f"engine vllm takes a folder with the whole model in its own weights, and {source.name!r} is a GGUF "
                f"file, an adapter or quantised; use --engine transformers."
            )
        self._llm = _loaded(str(source.folder), lm, self._prefix_caching)

    def _try_out(self, lm: LanguageModel, edits: Sequence[PlacedEdit]) -> None:
        """Compare with transformers, once without edits, and once at each site before it is edited first."""
        sites = {p.site for p in edits}
        if self._tried is None:
            self._compare(lm, [])
            self._tried = set()
        if new := sorted(sites - self._tried):
            self._compare(lm, edits_to_try(lm, new))
            self._tried |= set(new)

    def _compare(self, lm: LanguageModel, edits: Sequence[PlacedEdit]) -> None:
        prompts, new = trial_prompts(lm), 3
        self._install(lm, [(prompts, edits)], len(prompts))
        self._call("steerbench_watch", True)
        try:
            found = self._generated(lm, prompts, Decoding(max_new_tokens=new), [[0]] * len(prompts), endless=True)
            seen = self._call("steerbench_seen")
        finally:
            self._call("steerbench_watch", False)
        trial = Trial(prompts, [ids for (ids,) in found], {(p, at): state for p, at, state in seen})
        if fault := told_apart(lm, edits, trial):
            under = f"under an edit at {', '.join(str(p.site) for p in edits)}" if edits else "without edits"
            raise SteerbenchError(
                f"vLLM does not compute what transformers does with {lm.name} {under}: {fault}. "
                f"Use --engine transformers."
            )

    def _install(
        self, lm: LanguageModel, groups: Sequence[tuple[Sequence[Tokens], Sequence[PlacedEdit]]], batch_size: int
    ) -> None:
        """Put the edits of each group into the worker, unless just these are there."""
        _, edits = groups[0]
        if len(groups) == 1 and self._installed is not None and tuple(edits) == tuple(self._installed):
            return
        found = shipped_each(lm, groups, batch_size)
        acting = [one for one in found if one.open is None or bool(one.open.any())]
        self._installed = None
        if acting:
            self._ship(acting)
        else:
            self._call("steerbench_rest")
        self._installed = None if any(one.by_prompt for one in found) else tuple(edits)

    def _ship(self, edits: Sequence[Shipped]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), edits)
            try:
                self._call("steerbench_steer", folder)
            except Exception as error:
                raise SteerbenchError(
                    f"vLLM cannot be steered at {', '.join(str(one.placed.site) for one in edits)}: {brief(error)} "
                    f"Use --engine transformers."
                ) from error

    def _generated(
        self,
        lm: LanguageModel,
        prompts: Sequence[Tokens],
        decoding: Decoding,
        seeds: Sequence[Sequence[int]],
        endless: bool,
    ) -> list[list[list[int]]]:
        texts, params = [], []
        for i, (prompt, of_prompt) in enumerate(zip(prompts, seeds, strict=True)):
            salt = {"cache_salt": f"{next(self._salts)}"}
            for seed in of_prompt:
                texts.append({"prompt_token_ids": list(prompt.prompt), **salt})
                params.append(_params(lm, decoding, i, seed, endless))
        try:
            outputs = iter(self._llm.generate(texts, params, use_tqdm=False))
        except Exception as error:  # what it says of a text that is too long for it, or of a worker that is no more
            raise SteerbenchError(f"vLLM could not continue the prompts: {brief(error)}") from error
        return [[list(next(outputs).outputs[0].token_ids) for _ in of_prompt] for of_prompt in seeds]

    def _call(self, method: str, *args: Any) -> Any:
        (found,) = self._llm.collective_rpc(method, args=args)
        return found


def _chooses_at_the_end(part: DecodePart) -> bool:
    return part.blocks == Blocks() and not part.redraws and part.site is None


def _params(lm: LanguageModel, decoding: Decoding, prompt: int, seed: int, endless: bool) -> Any:
    """Return what vLLM is told of one continuation: it takes the likeliest token, of those that a draw leaves."""
    from vllm import SamplingParams

    draws = {"seed": seed, "decoding": asdict(decoding)} if decoding.temperature else {}
    return SamplingParams(
        temperature=0.0,
        max_tokens=decoding.max_new_tokens,
        min_tokens=decoding.max_new_tokens if endless else 0,
        stop_token_ids=lm.end_ids,
        ignore_eos=True,  # the end tokens are those above, and no others
        detokenize=False,
        extra_args={"prompt": prompt, **draws},
    )


def _loaded(folder: str, lm: LanguageModel, prefix_caching: bool) -> Any:
    with _environment():
        from vllm import LLM

        try:
            return LLM(
                model=folder,
                skip_tokenizer_init=True,
                dtype=str(lm.dtype).removeprefix("torch."),
                max_model_len=-1,  # what memory has room for
                enforce_eager=True,  # hooks are not traced
                async_scheduling=False,  # draws count the tokens that are there
                enable_prefix_caching=prefix_caching,
                worker_extension_cls=f"{_HOME}.vllm_worker.SteeredWorker",
                logits_processors=[f"{_HOME}.vllm_draws:SameDraws"],
                generation_config="vllm",
                disable_log_stats=True,
                seed=0,
            )
        except Exception as error:  # whatever it does not know
            raise SteerbenchError(f"vLLM cannot load {lm.name!r}: {brief(error)} Use --engine transformers.") from error


@contextmanager
def _environment() -> Iterator[None]:
    """Set what vLLM reads from the environment, where the user has not."""
    own = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]


def distributions() -> list[str]:
    """Return the names under which vLLM is installed here."""
    from importlib.metadata import packages_distributions

    return sorted(set(packages_distributions().get("vllm", [])))


def check_installed() -> None:
    """Raise SteerbenchError if vLLM is not here."""
    if not find_spec("vllm"):
        raise SteerbenchError(
            "engine vllm needs the package vllm, in an environment of its own: docs/vllm.md says how to install it. "
            "Leave --engine out to generate with transformers."
        )
