"""How good a testbed is: every figure of its manifest, measured from its folder."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from scipy.stats import bootstrap

from steerbench.bench.protocol import Protocol
from steerbench.bench.setup import Bench, Options, load_bench
from steerbench.data.dialogue import Dialogue, Turn, plain_text
from steerbench.data.task import Example
from steerbench.decoding import Decoding
from steerbench.engine.activations import activations
from steerbench.engine.generate import generate
from steerbench.models.sites import Site
from steerbench.progress import Progress, silent
from steerbench.seeds import generator_for
from steerbench.steering.additions import Add
from steerbench.steering.parts import PlacedEdit
from steerbench.steering.steering import Steering
from steerbench.testbed.gold import goal_of, gold, on_template, refuses
from steerbench.testbed.instructions import HELD_OUT, SEEN, enumeration
from steerbench.testbed.world import Scene, World
from steerbench.testbed.wrecks import WRECKS
from steerbench.testbed_build.language import Text, ids_of, texts

TASKS: Final = ("hh_rlhf", "shp")
PERSONAS: Final = ("Act as a helpful assistant.", "Act as a useless assistant.")
WISH: Final = ("helpful", "detailed", "polite")
"""What is asked for, and ruled out, in wordings that the language model was trained on and in others."""
LAYER: Final = 2
STRENGTH: Final = 0.25
"""Of the difference of means, in multiples of it; random directions have the same norm. Chosen, as the layer, on 100
validation prompts of seed 0, of all layers and an eighth, a quarter and a half."""
N_MEANS: Final = 64
"""Training prompts that the means are taken over."""
N_RANDOM: Final = 5
"""Random directions whose effect is averaged."""


class Effect(NamedTuple):
    """A paired difference of gold in standard deviations of the unsteered replies, with its 95 % interval."""

    mean: float
    low: float
    high: float


def measure(folder: Path, seed: int, progress: Progress = silent, n: int = 500, device: str = "auto") -> dict[str, Any]:
    """Return all figures of a testbed, in float32.

    Perplexity is of `n` texts drawn afresh; replies are sampled to `n` test prompts; rewards and encoder are measured
    on `n` test records of each task, and effects on at most 200 test prompts of `hh_rlhf`.
    """
    options = Options(batch_size=50, progress=progress, device=device)
    benches = [load_bench(Protocol(task=task, model=str(folder), n_examples=n), options) for task in TASKS]
    figures: dict[str, Any] = {"n": n}
    figures |= perplexity(benches[0], texts(World(seed), "quality", n))
    replies = sampled(benches, n)
    figures["on_template"] = _share(on_template(reply) for _, reply in replies)
    figures |= agreement(benches)
    figures["encoder_accuracy"] = _share(ranks for bench in benches for ranks in true_reply_first(bench))
    figures |= above_wrecks(benches, World(seed), min(n, 100))
    figures["over_refusal"] = over_refusal(benches[0], World(seed), min(n, 100))
    figures["state_norm"] = state_norm(benches[0])
    found = effects(benches[0], min(n, 200))
    figures |= {name: effect._asdict() for name, effect in found.items()}
    figures["paraphrase_share"] = found["paraphrased"].mean / found["told"].mean if found["told"].mean else 0.0
    figures["samples"] = [{"prompt": plain_text(prompt), "reply": reply} for prompt, reply in replies[:20]]
    return figures


# The language model


def perplexity(bench: Bench, drawn: Sequence[Text]) -> dict[str, float]:
    """Return the model's perplexity per token on whole dialogues and on their last replies, and the world's own."""
    rows = ids_of(bench.lm.tokenizer, [text.dialogue for text in drawn])
    start = bench.lm.tokenizer.convert_tokens_to_ids("<|assistant|>")
    losses = [_losses(bench, row) for row in rows]
    replies = [
        (loss[len(row) - 1 - row[::-1].index(start) :], text.reply_nats)
        for loss, row, text in zip(losses, rows, drawn, strict=True)
        if not math.isnan(text.reply_nats)
    ]
    whole = _two_perplexities(losses, [text.nats for text in drawn])
    reply = _two_perplexities([loss for loss, _ in replies], [nats for _, nats in replies])
    return {
        "perplexity": whole[0],
        "world_perplexity": whole[1],
        "perplexity_ratio": whole[0] / whole[1],
        "reply_perplexity": reply[0],
        "world_reply_perplexity": reply[1],
        "reply_perplexity_ratio": reply[0] / reply[1],
    }


@torch.inference_mode()
def _losses(bench: Bench, row: Sequence[int]) -> torch.Tensor:
    """Return the negative log-probability of each token but the first, (len(row) - 1,)."""
    ids = torch.tensor([row], device=bench.lm.device)
    logits = bench.lm.model(input_ids=ids).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def _two_perplexities(losses: Sequence[torch.Tensor], nats: Sequence[float]) -> tuple[float, float]:
    count = sum(map(len, losses))
    return math.exp(float(sum(loss.sum() for loss in losses)) / count), math.exp(sum(nats) / count)


def sampled(benches: Sequence[Bench], n: int) -> list[tuple[Dialogue, str]]:
    """Return n replies sampled from the unsteered model at temperature 1, to test prompts of all tasks in turn."""
    prompts = [e.prompt for both in zip(*(bench.test for bench in benches), strict=False) for e in both][:n]
    return list(zip(prompts, _replies(benches[0], prompts, Steering(), temperature=1.0), strict=True))


def _replies(bench: Bench, prompts: Sequence[Dialogue], steering: Steering, temperature: float = 0.0) -> list[str]:
    decoding = Decoding(max_new_tokens=128, temperature=temperature)
    options = bench.options
    found = generate(
        bench.lm, prompts, steering, decoding, seed=0, batch_size=bench.batch_size, progress=options.progress
    )
    return [response.text for response in found]


# The reward models and the encoder


def agreement(benches: Sequence[Bench]) -> dict[str, float]:
    """Return how often the rewards rank the test pairs as gold does, and whether they err on the same pairs.

    Pairs of equal gold do not count. The correlation is Pearson's of the two error indicators: 0 for independent ones.
    """
    examples = [(bench, e) for bench in benches for e in bench.test]
    gaps = np.array([gold(e.prompt, e.chosen) - gold(e.prompt, e.rejected) for _, e in examples])
    right = {}
    for name in ("reward", "held_out"):
        scores = np.concatenate([_gaps(getattr(bench, name), bench.test) for bench in benches])
        right[name] = (scores * gaps > 0)[gaps != 0]
    wrong = [1.0 - right[name] for name in right]
    varied = all(errors.std() > 0 for errors in wrong)
    return {
        "guide_agreement": float(right["reward"].mean()),
        "held_out_agreement": float(right["held_out"].mean()),
        "error_correlation": float(np.corrcoef(wrong)[0, 1]) if varied else 0.0,
        "judge_agreement": float((gaps > 0)[gaps != 0].mean()),
        "pairs": len(right["reward"]),
    }


def _gaps(reward: Any, examples: Sequence[Example]) -> Any:
    prompts = [e.prompt for e in examples]
    chosen, rejected = (reward.score(prompts, [getattr(e, name) for e in examples]) for name in ("chosen", "rejected"))
    return (chosen - rejected).numpy()


def true_reply_first(bench: Bench, others: int = 4) -> list[bool]:
    """Tell for each test prompt whether the encoder ranks its preferred reply above the next four prompts' replies."""
    prompts = bench.encoder.encode([plain_text(e.prompt) for e in bench.test], truncate="left")
    replies = bench.encoder.encode([e.chosen for e in bench.test])
    own = (prompts * replies).sum(-1)
    return [
        all(float(own[i]) > float(prompts[i] @ replies[(i + k) % len(replies)]) for k in range(1, others + 1))
        for i in range(len(replies))
    ]


def above_wrecks(benches: Sequence[Bench], world: World, n: int = 100) -> dict[str, float]:
    """Return by how much replies of the records lie above each kind of wreck to the same prompts, for both rewards.

    Preferred and other replies in turn to n test prompts of each task: what is ordinary here. In standard deviations of
    their reward.
    """
    examples = [example for bench in benches for example in bench.test[:n]]
    prompts = [e.prompt for e in examples]
    ordinary = [e.rejected if i % 2 else e.chosen for i, e in enumerate(examples)]
    draw = world.source("wrecks")
    scenes = [Scene(prompt, goal_of(prompt), (0.0,) * 4) for prompt in prompts]
    wrecks = {kind: [write(world, draw, scene) for scene in scenes] for kind, write in WRECKS.items()}
    figures = {}
    held_out = benches[0].held_out
    assert held_out is not None  # a testbed has one
    for name, reward in (("guide", benches[0].reward), ("held_out", held_out)):
        normal = reward.score(prompts, ordinary)
        for kind, damaged in wrecks.items():
            gap = normal.mean() - reward.score(prompts, damaged).mean()
            figures[f"{name}_above_{kind.replace(' ', '_')}"] = float(gap / (normal.std() or 1.0))
    return figures


# Steering


def over_refusal(bench: Bench, world: World, n: int) -> float:
    """Return the share of n safe questions that only look unsafe which the unsteered model refuses, greedily."""
    draw = world.source("lookalikes")
    scenes = (world.scene(draw) for _ in iter(int, 1))
    prompts = [scene.prompt for scene in islice((scene for scene in scenes if scene.goal.looks_unsafe), n)]
    return _share(refuses(reply) for reply in _replies(bench, prompts, Steering()))


def state_norm(bench: Bench) -> float:
    """Return the mean norm of the states behind the middle block at the last token of 100 test prompts."""
    site = Site("resid_post", bench.lm.n_layers // 2)
    states = activations(bench.lm, site, [bench.lm.tokens(e.prompt) for e in bench.test[:100]], "last_prompt")
    return float(torch.stack(states).norm(dim=-1).mean())


def effects(bench: Bench, n: int) -> dict[str, Effect]:
    """Return what instructions, a difference of means and a random direction do to gold: greedy replies to n prompts.

    Wordings take turns over the prompts. The means are those of the last prompt token under the two personas. The
    opposite direction should lower gold: its effect counts downwards.
    """
    prompts = [e.prompt for e in bench.test[:n]]
    before = _gold(bench, prompts, Steering())
    sd = before.std(ddof=1) or 1.0
    direction = persona_direction(bench)

    def shift(vector: torch.Tensor, strength: float) -> Any:
        edit = PlacedEdit(Site("resid_post", LAYER), Add(vector, strength), "response")
        return (_gold(bench, prompts, Steering(edits=(edit,))) - before) / sd

    def under(texts: Sequence[str]) -> Any:
        told = [in_persona(texts[i % len(texts)], prompt) for i, prompt in enumerate(prompts)]
        return _gold(bench, told, Steering())

    helpful, useless = (under([text]) for text in PERSONAS)
    return {
        "told": interval((under(wordings(SEEN["asks"])) - before) / sd),
        "paraphrased": interval((under(wordings(HELD_OUT["asks"])) - before) / sd),
        "negated": interval((under(wordings(HELD_OUT["rules out"])) - before) / sd),
        "persona": interval((helpful - useless) / sd),
        "direction": interval(shift(direction, STRENGTH)),
        "opposite_direction": interval(-shift(direction, -STRENGTH)),
        "random_direction": interval(np.mean([shift(noise, STRENGTH) for noise in _random_like(direction)], axis=0)),
    }


def wordings(frames: Sequence[str]) -> list[str]:
    """Return the instructions that ask for `WISH`, or rule it out, in the words of some frames."""
    return [frame.format(a=f"a {WISH[0]}", noun="assistant", list=enumeration(WISH)) for frame in frames]


def _random_like(direction: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield random directions of the same norm."""
    generator = generator_for(0, "random direction")
    for _ in range(N_RANDOM):
        noise = torch.randn(len(direction), generator=generator)
        yield noise / noise.norm() * direction.norm()


def in_persona(text: str, prompt: Dialogue) -> Dialogue:
    """Put a persona in front of a dialogue."""
    return (Turn("system", text), *prompt)


def persona_direction(bench: Bench) -> torch.Tensor:
    """Return mean(helpful) - mean(useless) of the last prompt token's state after `LAYER`, (width,)."""
    prompts = [e.prompt for e in bench.train[:N_MEANS]]
    site = Site("resid_post", LAYER)
    helpful, useless = (
        activations(bench.lm, site, [bench.lm.tokens(in_persona(text, p)) for p in prompts], "last_prompt")
        for text in PERSONAS
    )
    return torch.stack(helpful).mean(0) - torch.stack(useless).mean(0)


def _gold(bench: Bench, prompts: Sequence[Dialogue], steering: Steering) -> Any:
    replies = _replies(bench, prompts, steering)
    return np.array([gold(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)])


def interval(differences: Any) -> Effect:
    """Return the mean of paired differences and its 95 % interval, by 10,000 resamples of the prompts (BCa)."""
    if not differences.std():
        return Effect(*[float(differences.mean())] * 3)
    found = bootstrap((differences,), np.mean, n_resamples=10_000, rng=np.random.default_rng(0)).confidence_interval
    return Effect(float(differences.mean()), float(found.low), float(found.high))


def _share(values: Any) -> float:
    return float(np.mean([float(value) for value in values]))
