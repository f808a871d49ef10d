"""All that a method may learn from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from steerbench.data.dialogue import Dialogue
from steerbench.data.task import Example
from steerbench.decoding import Decoding
from steerbench.engine.activations import OF_RESPONSES, Pool, pooled_at, response_states
from steerbench.engine.backends.generation_engine import GenerationEngine
from steerbench.engine.generate import generate
from steerbench.errors import SteerbenchError
from steerbench.learn.rollout import Rollout, read_rollouts, write_rollouts
from steerbench.learn.states import KeptStates, States
from steerbench.learn.study_folder import StudyFolder
from steerbench.models.language_model import LanguageModel, Tokens
from steerbench.models.machine import environment
from steerbench.models.response import Response
from steerbench.models.sites import Site, SiteName
from steerbench.progress import Progress, silent
from steerbench.records.identity import asset, fingerprint
from steerbench.seeds import generator_for
from steerbench.version import __version__

if TYPE_CHECKING:
    from steerbench.models.reward import Reward


T = TypeVar("T")

READ_AHEAD = 2**28
"""Bytes of pooled states of some texts that are kept beside those asked for, at most."""


class Pair(NamedTuple):
    """The preferred and the other reply to one prompt, as tokens."""

    chosen: Tokens
    """The prompt, and the reply that is preferred."""
    rejected: Tokens
    """The prompt, and the other reply."""

    @property
    def usable(self) -> bool:
        """Whether both replies have tokens."""
        return bool(self.chosen.response and self.rejected.response)


@dataclass(kw_only=True)
class FitContext:
    """The model, the train split, the guiding reward and what was computed from them before.

    Validation and test data cannot be reached from here.
    """

    lm: LanguageModel
    """The frozen model: `lm.n_layers`, `lm.tokens(prompt, reply)`, `lm.model`, `lm.tokenizer`."""
    examples: Sequence[Example]
    """The train split."""
    test_queries: Sequence[Dialogue] | None = None
    """The test prompts, without replies, where the protocol lets methods see them."""
    reward: "Reward"
    """The reward that methods may learn from."""
    seed: int = 0
    """Of the run: the same one must give the same steering. `generator` makes random numbers from it."""
    decoding: Decoding = field(default_factory=Decoding)
    """How responses are drawn: `max_new_tokens`, `temperature` (0 is greedy), `top_k`, `top_p`."""
    batch_size: int = 16
    """Texts at once in a pass of the model."""
    engine: GenerationEngine | None = None
    """What responses are drawn with; None: transformers."""
    progress: Progress = silent
    """`with context.progress("probes", n) as advance:` shows a bar of n steps; `advance(1)` is one of them."""
    report: dict[str, Any] = field(default_factory=dict)
    """What a method found out about its own fit, as plain JSON values: written into the record."""
    seeded: bool = False
    """Whether a fit has asked for the seed, so that another one may give another steering: written into the record."""
    fit_seconds: list[float] = field(default_factory=list)
    """Of the fits that tuning tried."""
    _shared: dict[object, Any] = field(default_factory=dict)
    """Results kept for the methods that follow; one per run."""
    _study: StudyFolder | None = None
    """Where rollouts and states are kept for other processes, too."""

    @property
    def queries(self) -> Sequence[Dialogue]:
        """Prompts without replies: those of the train split, or of the test split under a transductive protocol."""
        return [e.prompt for e in self.examples] if self.test_queries is None else self.test_queries

    def pairs(self) -> list[Pair]:
        """Return the preference pairs of the train split, replies limited to the number of new tokens.

        A pair with a reply that gives no tokens is left out.
        """
        return self.once("pairs", self._pair_up)

    def rollouts(self) -> list[Rollout]:
        """Return one response of the unsteered model to each of the training prompts, in order, with its reward.

        Drawn and scored once per run and shared by all methods. Raises SteerbenchError where there is no reward.
        """
        return self.once(("rollouts", seed_of_draws(self)), self._found_rollouts)

    def activations(self, site: Site, tokens: Sequence[Tokens], pool: Pool) -> list[Tensor]:
        """Return float32 CPU activations, one tensor per sequence: (width,) when pooled, (tokens, width) for `all`.

        Raises SteerbenchError where a pool needs a response and there is none. Kept for trials and methods that follow.
        """
        return self.activations_at([site], tokens, pool)[site]

    def activations_at(self, sites: Sequence[Site], tokens: Sequence[Tokens], pool: Pool) -> dict[Site, list[Tensor]]:
        """Return what `activations` does for each of several sites, read in one pass of the model.

        Where texts are read a second time, trials are on their way that differ in layer and pool: then all layers of
        the site and all pools are read, for the price of one.
        """
        texts = tuple(tokens)
        if missing := [site for site in sites if not self._knows(site, pool, texts)]:
            ahead = self._worth_reading(missing, pool, texts)
            size, progress = self.batch_size, self.progress
            for key, states in pooled_at(self.lm, *ahead, texts, batch_size=size, progress=progress).items():
                self.once((*key, texts), lambda states=states: states)  # type: ignore[misc]
        return {site: self._shared[__name__, (site, pool, texts)] for site in sites}

    def _knows(self, site: Site, pool: Pool, texts: tuple[Tokens, ...]) -> bool:
        return (__name__, (site, pool, texts)) in self._shared

    def _worth_reading(
        self, missing: list[Site], pool: Pool, texts: tuple[Tokens, ...]
    ) -> tuple[list[Site], list[Pool]]:
        """Return sites and pools to read: those missing, or all that trials may ask for, where it is little to keep."""
        layers = {
            Site(site.name, k)
            for site in missing
            for k in (self.lm.anatomy.layers(site.name) if site.layer is not None else [])
        }
        sites = sorted({*missing, *layers})
        pools: list[Pool] = ["last_prompt", *(OF_RESPONSES if all(t.response for t in texts) else ())]
        before = [(site, at, texts) for site in sites for at in pools if self._knows(site, at, texts)]
        if not before or not texts or pool == "all":
            return missing, [pool]
        size = len(sites) * len(pools) * len(texts) * 4 * self._shared[__name__, before[0]][0].numel()
        return (sites, pools) if size <= READ_AHEAD else (missing, [pool])

    def sites(self, name: SiteName) -> list[Site]:
        """Return the sites of a name, one for each block that has it; where some have none, the report says which do.

        In a hybrid only some blocks have an attention, or a feed-forward part. Raises SteerbenchError if none has it.
        """
        layers = self.lm.anatomy.layers(name)
        if len(layers) < self.lm.n_layers:
            self.report[f"layers_with_{name}"] = layers
        return [Site(name, layer) for layer in layers]

    def states(self, site: Site, tokens: Sequence[Tokens]) -> States:
        """Return the states that each response token is drawn from, kept on disk: see `steerbench.learn.States`."""

        def read() -> Iterator[Tensor]:
            return response_states(self.lm, site, tokens, batch_size=self.batch_size, progress=self.progress)

        def find() -> States:
            if self._study is None:
                return States.write(read())
            key = {**self._machine(), "site": str(site), "tokens": fingerprint(list(tokens))}
            return self._study.once("states", key, KeptStates.read, lambda folder: KeptStates.keep(folder, read()))

        return self.once(("states", site, tuple(tokens)), find)

    def generator(self, *names: object) -> torch.Generator:
        """Return a CPU generator seeded by the run's seed and `names`."""
        return generator_for(self.seed, "fit", *names)

    def once(self, key: object, compute: Callable[[], T]) -> T:
        """Return what `compute` gives, computed once per run: trials and methods that follow share it.

        The key must name all that the result depends on, the seed included where it matters. Nobody may change the
        result. Keys are apart for functions of different modules, so that no method gets what another one computed.
        """
        owned = (compute.__module__, key)
        if owned not in self._shared:
            self._shared[owned] = compute()
        result: T = self._shared[owned]
        return result

    def _pair_up(self) -> list[Pair]:
        limit = self.decoding.max_new_tokens
        replies = [[self.lm.tokens(e.prompt, reply, limit) for reply in (e.chosen, e.rejected)] for e in self.examples]
        pairs = [pair for pair in (Pair(*both) for both in replies) if pair.usable]
        if not pairs:
            raise SteerbenchError("the train split has no pair of replies to learn from; use more training examples.")
        return pairs

    def _found_rollouts(self) -> list[Rollout]:
        if self._study is None:
            return self._roll_out()
        key = {
            **self._machine(),
            "examples": fingerprint([[e.prompt, e.group] for e in self.examples]),
            "decoding": asdict(self.decoding),
            "seed": seed_of_draws(self),
            "reward": asset(self.reward.name, self.reward.revision),
            **({"engine": {"name": self.engine.name, **self.engine.facts}} if self.engine else {}),
        }
        return self._study.once("rollouts", key, read_rollouts, lambda folder: write_rollouts(folder, self._roll_out()))

    def _machine(self) -> dict[str, Any]:
        """Return what all results depend on, to the last bit: the model, and what computes."""
        on = environment(self.lm.device)
        return {
            "steerbench": __version__,
            "model": asset(self.lm.name, self.lm.revision),
            "dtype": str(self.lm.dtype),
            "format": self.lm.format.key,
            "batch_size": self.batch_size,
            **{name: on[name] for name in ("device", "threads", "torch", "transformers")},
        }

    def _roll_out(self) -> list[Rollout]:
        self.reward.check()
        prompts = [e.prompt for e in self.examples]
        self.reward.check_prompts(prompts)
        seed, size = seed_of_draws(self), self.batch_size
        responses = generate(
            self.lm,
            prompts,
            decoding=self.decoding,
            seed=seed,
            batch_size=size,
            engine=self.engine,
            progress=self.progress,
        )
        rewards = self.reward.score(prompts, [r.text for r in responses], progress=self.progress).tolist()
        tokens = [self._read(p, r) for p, r in zip(prompts, responses, strict=True)]
        groups = [e.group for e in self.examples]
        return [Rollout(*row) for row in zip(prompts, responses, tokens, rewards, groups, strict=True)]

    def _read(self, prompt: Dialogue, response: Response) -> Tokens:
        """Return a response as methods read it: a thought before the answer belongs to what the answer follows."""
        ids, start = response.ids, response.thought
        return Tokens(self.lm.tokens(prompt).prompt + ids[:start], ids[start:])


def seed_of_draws(context: FitContext) -> int:
    """Return the seed that responses are drawn by, which greedy ones do without.

    So a fit on greedy responses has not asked for the seed, whoever was first to need them.
    """
    return context.seed if context.decoding.temperature > 0 else 0
