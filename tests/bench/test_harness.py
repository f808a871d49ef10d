"""The main path on tiny models: what is measured, what is kept, what is shared, and what makes two runs comparable."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from thorough import mostly_slow

from steerbench import Decoding, Options, Protocol, Reward, Store, run
from steerbench.bench import run as harness
from steerbench.bench.scoring import score
from steerbench.bench.setup import Bench, load_bench
from steerbench.data import user
from steerbench.engine import generate as generation
from steerbench.engine.activations import pooled_at
from steerbench.engine.effect import Effect
from steerbench.engine.timing import latency
from steerbench.errors import SteerbenchError
from steerbench.learn import Response, RewardModel
from steerbench.metrics import diversity_of, repetition_of, wins
from steerbench.models.encoder import SentenceEncoder
from steerbench.models.pieces import BatchSize
from steerbench.plugins import registry
from steerbench.records.comparisons import COMPARISONS, compared, comparisons
from steerbench.records.identity import differences

PLUGIN = """
from collections.abc import Sequence
from dataclasses import dataclass
from steerbench import FitContext, Steerer, Steering, SteerbenchError
from steerbench.edits import DecodePart
{part}
@dataclass(frozen=True, kw_only=True)
class Plugin(Steerer):
    off = {{}}
    def fit(self, context: FitContext) -> Steering:
        {fit}
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that registers a method made of one line of `fit`, and perhaps a part."""
    monkeypatch.setattr(registry, "_files", dict(registry._files))

    def make(name: str, fit: str, part: str = "") -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(PLUGIN.format(fit=fit, part=part))
        return registry.add_plugin(path)[1]

    return make


def test_a_report_that_is_no_json_fails_its_method_alone(
    protocol: Protocol, plugin: Callable[..., str], tmp_path: Path
) -> None:
    for name, value in (("tensor", "__import__('torch').tensor(0.1)"), ("nan", "float('nan')")):
        plugin(f"bad_{name}", f"context.report['loss'] = {value}; return Steering()")
    plugin("good", "context.report['loss'] = (0.5, None); return Steering()")
    outcome = run(protocol, "bad_tensor,bad_nan,good+good", Options(out=tmp_path / "runs"))
    assert [f.method for f in outcome.failures] == ["bad_tensor", "bad_nan"]
    assert all("its report is not made of plain JSON values" in f.message for f in outcome.failures)
    assert outcome.records[-1].report["fit"] == {"good[0]": {"loss": [0.5, None]}, "good[1]": {"loss": [0.5, None]}}


def test_methods_with_the_same_key_share_nothing(
    protocol: Protocol, plugin: Callable[..., str], tmp_path: Path
) -> None:
    """What a method computes once is its own: a copy of it under another name must not get the original's."""
    for name in ("one", "two"):
        plugin(name, f"context.report['of'] = context.once('key', lambda: {name!r}); return Steering()")
    outcome = run(protocol, "one,two", Options(out=tmp_path / "runs"))
    assert [r.report["fit"] for r in outcome.records[1:]] == [{"one": {"of": "one"}}, {"two": {"of": "two"}}]


def scores(folder: Path, method: str) -> pd.DataFrame:
    found = [r for r in Store(folder).records() if r.method == method]
    assert len(found) == 1
    return found[0].examples


def test_a_run_measures_the_unsteered_model_and_every_method(protocol: Protocol, tmp_path: Path) -> None:
    outcome = run(protocol, "static_prompt:text=Hi,caa,random_direction", Options(out=tmp_path))
    names = ["unsteered", "static_prompt:text=Hi", "caa", "random_direction"]
    assert [r.method for r in outcome.records] == names
    assert not outcome.failures
    for record in outcome.records:
        table = record.examples
        assert len(table) == 4
        weights = table["tokens"] / table["tokens"].sum()
        assert record.metrics.pop("kl") == pytest.approx((table["kl"] * weights).sum())
        assert record.metrics.pop("perplexity") == pytest.approx(np.exp((table["nll"] * weights).sum()))
        for name, mean in record.metrics.items():
            assert mean == pytest.approx(table[name].mean())
        assert record.latency["device"]
        assert record.latency["decode_ratio"] > 0


def test_scores_are_those_of_the_parts(protocol: Protocol, world: Path, tmp_path: Path) -> None:
    record = run(protocol, "caa:strength=4", Options(out=tmp_path)).records[1]
    table = record.examples
    bench = load_bench(protocol, Options())
    reward = RewardModel.load(str(world / "reward"))
    prompts = [e.prompt for e in bench.test]
    assert list(table["id"]) == [e.id for e in bench.test]
    assert list(table["reward"]) == pytest.approx(reward.score(prompts, list(table["response"])).tolist(), abs=1e-5)
    preferred = reward.score(prompts, [e.chosen for e in bench.test]).tolist()
    for i, row in table.iterrows():
        assert row["diversity"] == diversity_of(row["response"])
        assert row["repetition"] == repetition_of(row["response"])
        assert row["preferred_reward"] == pytest.approx(preferred[i], abs=1e-5)
    assert not {*table} & {*COMPARISONS}
    assert list(table["preferred_reward"]) == list(scores(tmp_path, "unsteered")["preferred_reward"])


def test_texts_too_long_for_the_reward_are_counted(protocol: Protocol, world: Path, tmp_path: Path) -> None:
    short = shutil.copytree(world / "reward", tmp_path / "reward")
    config = short / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 40}))
    outcome = run(replace(protocol, reward_model=str(short)), "caa", Options(out=tmp_path / "runs"))
    # the preferred replies are scored once, at first, and count in each: no record depends on which one was first
    assert [r.truncated for r in outcome.records] == [8, 8]
    (one,) = run(replace(protocol, reward_model=str(short)), "unsteered", Options(out=tmp_path / "alone")).records
    assert one.truncated == 8


class CountLetters(Reward):
    """The longer, the better."""

    name, revision = "letters", "1"

    def score(self, dialogues: Any, responses: Sequence[str], progress: Any = None) -> torch.Tensor:
        return torch.tensor([float(len(r)) for r in responses])


NOTHING = Effect([0.0] * 4, [0.0] * 4, {})


def against_preferred(bench: Bench, responses: list[Response]) -> list[float]:
    table = score(bench, responses, NOTHING)
    return wins(table["reward"].tolist(), table["preferred_reward"].tolist())


def test_the_preferred_reply_is_the_one_to_beat(protocol: Protocol) -> None:
    bench = load_bench(protocol, Options())
    bench.reward = CountLetters()
    between = [Response("x" * ((len(e.chosen) + len(e.rejected)) // 2), (1,), "length") for e in bench.test]
    assert all(len(e.chosen) > len(r.text) > len(e.rejected) for e, r in zip(bench.test, between, strict=True))
    assert against_preferred(bench, between) == [0.0] * 4
    longer = [Response("x" * (len(e.chosen) + 1), (1,), "length") for e in bench.test]
    assert against_preferred(bench, longer) == [1.0] * 4
    equal = [Response(e.chosen, (1,), "length") for e in bench.test]
    assert against_preferred(bench, equal) == [0.5] * 4


def test_what_has_a_record_is_not_measured_again(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(protocol, "caa", Options(out=tmp_path))
    measured = []
    original = harness.measure

    def spy(bench: Any, method: Any, seed: int) -> Any:
        measured.append(str(method.spec))
        return original(bench, method, seed)

    monkeypatch.setattr(harness, "measure", spy)
    second = run(protocol, "caa:strength=2,caa", Options(out=tmp_path))
    assert measured == ["caa:strength=2"]
    assert second.found == 2
    by_name = {r.method: r for r in second.records}
    assert by_name["caa"] == first.records[1]


def test_a_failing_method_is_reported_and_the_others_go_on(
    protocol: Protocol, tmp_path: Path, plugin: Callable[..., str]
) -> None:
    bad = plugin("bad_one", "raise SteerbenchError('no such thing; do that.')")
    outcome = run(protocol, f"{bad},caa", Options(out=tmp_path))
    assert [r.method for r in outcome.records] == ["unsteered", "caa"]
    assert outcome.failures == [(bad, 0, "no such thing; do that.")]


def test_without_the_unsteered_model_nothing_is_compared(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise SteerbenchError("broken model")

    monkeypatch.setattr(harness, "generate_samples", fail)
    with pytest.raises(SteerbenchError, match="broken model"):
        run(protocol, "caa", Options(out=tmp_path))


def test_methods_learn_from_train_alone_and_share_what_was_computed(
    protocol: Protocol, tmp_path: Path, plugin: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rolling = "assert len(context.rollouts()) == 6; assert not hasattr(context, 'test'); return Steering()"
    one, two = plugin("rolls_one", rolling), plugin("rolls_two", rolling)
    calls: list[int] = []
    original = generation.generate

    def count(lm: Any, dialogues: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(dialogues))
        return original(lm, dialogues, *args, **kwargs)

    monkeypatch.setattr("steerbench.learn.context.generate", count)
    outcome = run(protocol, f"{one},{two}", Options(out=tmp_path))
    assert not outcome.failures
    assert calls == [6]


def test_activations_are_computed_once(protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = pooled_at

    def count(lm: Any, sites: Any, pools: Any, tokens: Any, **kwargs: Any) -> Any:
        calls.extend(f"{site} {pool}" for site in sites for pool in pools)
        return original(lm, sites, pools, tokens, **kwargs)

    monkeypatch.setattr("steerbench.learn.context.pooled_at", count)
    run(protocol, "caa,random_direction,caa:strength=2", Options(out=tmp_path))
    assert calls == ["resid_post.1 response_mean"] * 2  # chosen and rejected


def test_train_and_test_are_disjoint(protocol: Protocol) -> None:
    bench = load_bench(protocol, Options())
    assert len(bench.train) == 6
    assert len(bench.test) == 4
    assert not {e.group for e in bench.train} & {e.group for e in bench.test}


@pytest.mark.parametrize("temperature", mostly_slow([0.0, 1.0], lambda t: t == 1))
def test_batch_size_changes_no_score(protocol: Protocol, tmp_path: Path, temperature: float) -> None:
    protocol = replace(protocol, decoding=Decoding(max_new_tokens=6, temperature=temperature))
    sizes: tuple[BatchSize, ...] = (1, 3, 16, "auto")
    folders = {size: tmp_path / str(size) for size in sizes}
    for size, folder in folders.items():
        run(protocol, "caa:strength=4", Options(out=folder, batch_size=size))
    for method in ("unsteered", "caa:strength=4"):
        one = scores(folders[1], method)
        for folder in folders.values():
            pd.testing.assert_frame_equal(one, scores(folder, method), atol=1e-5, rtol=0)
    keys = [r.protocol for folder in folders.values() for r in Store(folder).records()]
    assert all(key == keys[0] for key in keys)


def test_seeds_draw_differently_and_greedy_does_not_draw(protocol: Protocol, tmp_path: Path) -> None:
    sampled = replace(protocol, seeds=(0, 1), decoding=Decoding(max_new_tokens=6, temperature=1.0))
    a, b = run(sampled, "unsteered", Options(out=tmp_path / "sampled")).records
    assert (a.seed, b.seed) == (0, 1)
    assert list(a.examples["response"]) != list(b.examples["response"])
    a, b = run(replace(protocol, seeds=(0, 1)), "unsteered", Options(out=tmp_path / "greedy")).records
    assert list(a.examples["response"]) == list(b.examples["response"])


def test_the_guide_cannot_be_held_out(protocol: Protocol, world: Path) -> None:
    with pytest.raises(SteerbenchError, match="the held-out reward, reward, is the guiding reward itself"):
        load_bench(replace(protocol, held_out_reward=str(world / "reward")), Options())


def test_a_held_out_reward_scores_beside_the_guide(protocol: Protocol, other_reward: Path, tmp_path: Path) -> None:
    both = replace(protocol, held_out_reward=str(other_reward))
    unsteered, record = run(both, "caa", Options(out=tmp_path)).records
    assert record.metrics["held_out_reward"] == pytest.approx(record.metrics["reward"])
    told = comparisons(record, unsteered)
    assert told["held_out_win_rate"] == told["win_rate"]
    assert told["held_out_win_rate_preferred"] == told["win_rate_preferred"]


def test_a_choosing_method_is_judged_by_the_guide(
    protocol: Protocol, tmp_path: Path, plugin: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "latency", partial(latency, new_tokens=8, rounds=1))
    part = """
class Best(DecodePart):
    def __init__(self, candidates: int) -> None:
        self.candidates = candidates
    def choose(self, dialogue, candidates, reward):
        return int(reward.score([dialogue] * len(candidates), candidates).argmax())
"""
    name = plugin("best_of_four", "return Steering(decode=Best(4))", part)
    sampled = replace(protocol, decoding=Decoding(max_new_tokens=6, temperature=1.0))
    outcome = run(sampled, f"{name},{name}+caa", Options(out=tmp_path))
    assert not outcome.failures
    best = outcome.records[1]
    won = compared(best, outcome.records[0])["win_rate"]
    assert won.mean() > 0.5
    assert set(won) <= {0.5, 1.0}  # the unsteered draw is among the candidates


CHANGES: dict[str, dict[str, Any]] = {
    "n_examples": {"n_examples": 3},
    "n_train": {"n_train": 5},
    "tuning_budget": {"tuning_budget": 2},
    "max_prompt_tokens": {"max_prompt_tokens": 200},
    "max_new_tokens": {"decoding": Decoding(max_new_tokens=5)},
    "temperature": {"decoding": Decoding(max_new_tokens=6, temperature=0.5)},
    "top_k": {"decoding": Decoding(max_new_tokens=6, temperature=0.5, top_k=3)},
    "top_p": {"decoding": Decoding(max_new_tokens=6, temperature=0.5, top_p=0.5)},
    "seeds": {"seeds": (0, 1)},
    "dtype": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_choice_changes_the_key(protocol: Protocol, field: str) -> None:
    base = load_bench(protocol, Options()).key
    changed = load_bench(replace(protocol, **CHANGES[field]), Options()).key
    assert field in [d.field for d in differences(base, changed)]


def test_paths_do_not_count_and_contents_do(protocol: Protocol, world: Path, tmp_path: Path) -> None:
    base = load_bench(protocol, Options()).key
    moved = shutil.copytree(world, tmp_path / "elsewhere")
    (moved / "lm").rename(moved / "renamed")
    (moved / "hh_rlhf.jsonl").rename(moved / "data.jsonl")
    there = replace(protocol, model=str(moved / "renamed"), data=moved / "data.jsonl")
    assert load_bench(there, Options(batch_size=3)).key == base
    with (moved / "data.jsonl").open("a") as file:
        file.write('{"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: a", "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: b"}\n')
    assert "data" in [d.field for d in differences(base, load_bench(there, Options()).key)]


def test_prompts_that_do_not_fit_are_counted(protocol: Protocol) -> None:
    bench = load_bench(replace(protocol, n_examples=50, max_prompt_tokens=38), Options())
    assert bench.counts["prompt longer than 38 tokens"] > 0
    assert all(len(bench.lm.tokens(e.prompt).prompt) <= 38 for e in bench.test)
    with pytest.raises(SteerbenchError, match="raise --max-prompt-tokens"):
        load_bench(replace(protocol, max_prompt_tokens=5), Options())
    with pytest.raises(SteerbenchError, match="do not fit the context of 256"):
        load_bench(replace(protocol, decoding=Decoding(max_new_tokens=300)), Options())


def test_the_default_encoder_that_is_not_there_names_the_option(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, **settings: Any) -> SentenceEncoder:
        raise SteerbenchError(f"model {name!r} cannot be found.")

    monkeypatch.setattr(SentenceEncoder, "load", load)
    with pytest.raises(SteerbenchError, match=r"sup-simcse.* cannot be found\..*where --encoder names no other"):
        load_bench(replace(protocol, encoder=None), Options())
    with pytest.raises(SteerbenchError, match=r"encoder' cannot be found\.$"):
        load_bench(protocol, Options())


def test_a_prompt_that_a_method_makes_too_long_fails_that_method_alone(protocol: Protocol, tmp_path: Path) -> None:
    text = "long " * 60
    outcome = run(protocol, f'static_prompt:text="{text}",caa', Options(out=tmp_path))
    assert [r.method for r in outcome.records] == ["unsteered", "caa"]
    assert "do not fit the context of 256" in outcome.failures[0].message


@pytest.mark.slow
@pytest.mark.parametrize("task", ["hh_rlhf", "shp"])
def test_real_prompts_and_models(task: str, assets: Path, tmp_path: Path) -> None:
    """Real records, a real chat model and a real reward model: the responses are readable English."""
    protocol = Protocol(
        task=task,
        model=str(assets / "models" / "tinytalk-3m-chat"),
        reward_model=str(assets / "models" / "minilm-hh-reward"),
        encoder=str(assets / "models" / "minilm-encoder"),
        data=assets / "data",
        n_examples=6,
        n_train=6,
        decoding=Decoding(max_new_tokens=24),
    )
    outcome = run(protocol, "static_prompt,caa", Options(out=tmp_path))
    assert not outcome.failures
    assert len(outcome.records) == 3
    assert all(r.metrics["empty"] == 0 for r in outcome.records)
    words = " ".join(outcome.records[0].examples["response"]).split()
    assert len(words) > 18
    assert sum(word.strip(".,!?'\"").isalpha() or "'" in word for word in words) > 0.9 * len(words)


def test_a_dialogue_of_one_turn_is_what_shp_gives(assets: Path) -> None:
    protocol = Protocol(
        task="shp",
        model=str(assets / "models" / "tinytalk-3m-chat"),
        reward_model=str(assets / "models" / "minilm-hh-reward"),
        encoder=str(assets / "models" / "minilm-encoder"),
        data=assets / "data" / "shp",
        n_examples=4,
        n_train=4,
    )
    bench = load_bench(protocol, Options())
    assert all(e.prompt == user(e.prompt[0].text) for e in bench.test)
