"""How a steering does on the validation prompts: all that tuning sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from steerbench.bench.protocol import Objective
from steerbench.data.dialogue import Dialogue, plain_text
from steerbench.data.task import Example
from steerbench.engine.effect import effect
from steerbench.engine.generate import generate
from steerbench.engine.kept_prompts import KeptPrompts
from steerbench.learn.context import FitContext
from steerbench.learn.fitting import NoReward
from steerbench.metrics import coherence_of, diversity_of
from steerbench.models.encoder import SentenceEncoder
from steerbench.records.per_token import over_tokens
from steerbench.steering.steering import Steering


@dataclass(frozen=True)
class Validation:
    """The validation prompts, and what makes one steering better than another on them."""

    examples: Sequence[Example]
    encoder: SentenceEncoder
    objective: Objective = "reward"
    with_kl: bool = False
    """Whether KL(steered || unsteered) per token is measured, which takes two more passes over the responses."""
    kept: KeptPrompts | None = None
    """The prompts, read once for all trials."""

    def scores(self, steering: Steering, context: FitContext) -> dict[str, float]:
        """Return means over the prompts: `score`, which is the objective, and what it is made of.

        Without a reward there is no score, only what else is measured. Measured once per steering: many fits are the
        same for every seed, and greedy responses too.
        """
        rewards: list[float] = self._details(Steering(), context)["rewards"]
        seen: dict[str, float] = self._details(steering, context)["means"]
        if not rewards:
            return seen
        spread = float(np.std(rewards)) or 1.0
        if self.objective == "sum":
            score = seen["coherence"] + seen["diversity"] + seen["reward"]
        else:
            score = (seen["reward"] - fmean(rewards)) / spread
        return {"score": score, **seen}

    def _details(self, steering: Steering, context: FitContext) -> dict[str, Any]:
        sampled = context.decoding.temperature > 0  # greedy responses are the same for every seed
        key = ("on validation", self.with_kl, steering.digest(), context.seed if sampled else None)
        return context.once(key, lambda: self._measure(steering, context))

    def _measure(self, steering: Steering, context: FitContext) -> dict[str, Any]:
        prompts = [e.prompt for e in self.examples]
        responses = generate(
            context.lm,
            prompts,
            steering,
            context.decoding,
            seed=context.seed,
            reward=context.reward,
            batch_size=context.batch_size,
            engine=context.engine,
            kept=self.kept,
            progress=context.progress,
        )
        texts = [r.text for r in responses]
        rewards = [] if isinstance(context.reward, NoReward) else self._rewards(context, prompts, texts)
        means = {
            **({"reward": fmean(rewards)} if rewards else {}),
            "diversity": fmean(map(diversity_of, texts)),
            "coherence": fmean(coherence_of(self.encoder, [plain_text(p) for p in prompts], texts)),
            "length": fmean(r.n_tokens for r in responses),
        }
        if self.with_kl:
            found = effect(
                context.lm,
                prompts,
                responses,
                steering,
                decoding=context.decoding,
                reward=context.reward,
                batch_size=context.batch_size,
                kept=self.kept,
            )
            means |= over_tokens({"kl": found.kl}, [len(r.ids) for r in responses])
        return {"means": means, "rewards": rewards}

    @staticmethod
    def _rewards(context: FitContext, prompts: Sequence[Dialogue], texts: Sequence[str]) -> list[float]:
        return [float(x) for x in context.reward.score(prompts, texts, context.progress).double()]
