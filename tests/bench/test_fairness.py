"""It ranks fairly: what matters is refused by name, what does not changes no score, and chance is called chance."""

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from made_records import make

from steerbench import Decoding, Options, Protocol, Record, SteerbenchError, generate, leaderboard, run
from steerbench.bench.setup import load_bench
from steerbench.contract import tiny
from steerbench.engine.backends import vllm_engine
from steerbench.records.identity import differences
from steerbench.records.leaderboard import over_first
from steerbench.records.ranks import ranks_of
from steerbench.records.statistics import Gaps, intervals, p_values

# Every choice of a protocol


def other_copy(folder: Path, where: Path) -> str:
    """Return a copy of a model that does the same and has another content."""
    shutil.copytree(folder, where)
    (where / "NOTES.md").write_text("another revision\n")
    config = where / "config.json"
    config.write_text(config.read_text() + "\n")
    return str(where)


def changed(protocol: Protocol, world: Path, tmp_path: Path) -> dict[str, tuple[Protocol, set[str]]]:
    """Return for each field of a protocol the same with another value, and what in the key tells of it."""
    (tmp_path / "data.jsonl").write_text((world / "hh_rlhf.jsonl").read_text() + "\n")
    (tmp_path / "mmlu.csv").write_text("".join(f"Which of {i}?,One,Two,Three,Four,{x}\n" for i, x in enumerate("ABCD")))
    tuned = {"n_validation", "validation_examples", "tuning_budget", "objective"}

    def new(**values: Any) -> Protocol:
        return replace(protocol, **values)

    def asking(**values: Any) -> Protocol:
        return new(capability="mmlu", capability_data=tmp_path / "mmlu.csv", **values)

    return {
        "task": (new(task="shp", data=None), set()),
        "model": (new(model=other_copy(world / "lm", tmp_path / "lm")), {"model"}),
        "reward_model": (new(reward_model=other_copy(world / "reward", tmp_path / "reward")), {"reward_model"}),
        "held_out_reward": (new(held_out_reward=str(tmp_path / "reward")), {"held_out_reward"}),
        "encoder": (new(encoder=other_copy(world / "encoder", tmp_path / "encoder")), {"encoder"}),
        "data": (new(data=tmp_path / "data.jsonl"), {"data"}),
        "n_examples": (new(n_examples=3), {"n_examples", "examples"}),
        "n_samples": (
            new(n_samples=2, decoding=replace(protocol.decoding, temperature=1.0)),
            {"n_samples", "temperature"},
        ),
        "n_train": (new(n_train=5), {"n_train", "train_examples"}),
        "tuning_budget": (new(tuning_budget=2, n_validation=2), tuned),
        "objective": (new(tuning_budget=2, n_validation=2, objective="sum"), tuned),
        "sampler": (new(tuning_budget=17, n_validation=2, sampler="optuna"), {*tuned, "sampler"}),
        "match_kl": (new(match_kl=0.1, n_validation=2), {*tuned, "match_kl"}),
        "n_validation": (new(tuning_budget=2, n_validation=3), tuned),
        "transductive": (new(transductive=True), {"transductive"}),
        "max_prompt_tokens": (new(max_prompt_tokens=60), {"max_prompt_tokens"}),
        "decoding": (new(decoding=Decoding(max_new_tokens=6, temperature=0.5, top_k=3)), {"temperature", "top_k"}),
        "capability": (asking(), {"capability"}),
        "capability_data": (asking(), {"capability"}),
        "n_capability": (asking(n_capability=3), {"capability"}),
        "seeds": (new(seeds=(1,)), {"seeds"}),
        "dtype": (new(dtype="bfloat16"), {"dtype"}),
        "engine": (new(engine="vllm"), {"engine"}),
    }


@pytest.fixture(scope="module")
def unsteered(protocol: Protocol, tmp_path_factory: pytest.TempPathFactory) -> Record:
    return run(protocol, "unsteered", Options(out=tmp_path_factory.mktemp("runs"))).records[0]


@pytest.mark.parametrize("field", [field.name for field in fields(Protocol) if field.name not in ("task", "thinking")])
def test_each_choice_is_in_the_key_and_refused_by_its_name(
    protocol: Protocol, unsteered: Record, world: Path, tmp_path: Path, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "check_installed", lambda: None)  # the key does not ask it to generate
    choices = changed(protocol, world, tmp_path)
    others = {"thinking"}  # which is in the key of models with thoughts alone: see test_chat_protocol.py
    assert choices.keys() == {f.name for f in fields(Protocol)} - others, "a new field needs a case"
    other, names = choices[field]
    key = load_bench(other, Options()).key
    assert {d.field for d in differences(unsteered.protocol, key)} == names
    with pytest.raises(SteerbenchError, match="not measured alike") as refused:
        leaderboard([unsteered, replace(unsteered, protocol=key)])
    assert all(f"{name}: " in str(refused.value) for name in names)


def test_values_of_two_objectives_are_told_apart(protocol: Protocol) -> None:
    """Tuned by the reward, by the sum, and to a KL are three protocols."""
    tuned = replace(protocol, tuning_budget=2, n_validation=2)
    keys = [load_bench(replace(tuned, **c), Options()).key for c in ({}, {"objective": "sum"}, {"match_kl": 0.1})]
    assert [key["objective"] for key in keys] == ["reward", "sum", "kl"]
    assert {d.field for d in differences(keys[0], keys[1])} == {"objective"}


# What must not matter


def tables(protocol: Protocol, folder: Path, **options: Any) -> list[pd.DataFrame]:
    outcome = run(protocol, "caa", Options(out=folder, **options))
    assert not outcome.failures
    return [record.examples for record in outcome.records]


def same(one: list[pd.DataFrame], other: list[pd.DataFrame]) -> None:
    for left, right in zip(one, other, strict=True):
        pd.testing.assert_frame_equal(left, right, check_exact=False, rtol=1e-4, atol=1e-5)


# the batch size: tests/test_harness.py and tests/test_contract.py


def test_the_number_of_threads_changes_no_score(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steerbench.bench import setup as bench

    monkeypatch.setattr(bench, "use_threads", lambda *_: None)
    protocol = replace(protocol, n_examples=2, n_train=2, decoding=Decoding(max_new_tokens=3))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = tables(protocol, tmp_path / "1")
        torch.set_num_threads(2)
        same(tables(protocol, tmp_path / "2"), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
def test_the_device_changes_no_score(protocol: Protocol, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    protocol = replace(protocol, dtype="float32")
    same(tables(protocol, tmp_path / "cuda", device="cuda"), tables(protocol, tmp_path / "cpu", device="cpu"))


# Chance is called chance


@pytest.mark.slow
@pytest.mark.parametrize("n_studies", [20, 200])
def test_the_unsteered_model_beats_itself_in_one_study_of_twenty(n_studies: int) -> None:
    """Studies of the unsteered model against itself with another sampling seed, 60 prompts each."""
    lm, reward = tiny.language_model(), tiny.VowelReward()
    prompts = [e.prompt for e in tiny.examples()[:60]]
    ids = [str(i) for i in range(60)]
    sampled = Decoding(max_new_tokens=8, temperature=1.0)

    def rewards(sample: int) -> Any:
        texts = [r.text for r in generate(lm, prompts, decoding=sampled, sample=sample, batch_size=60)]
        return reward.score(prompts, texts).double().numpy()

    studies = [rewards(2 * k) - rewards(2 * k + 1) for k in range(n_studies)]
    assert np.std(studies) > 0
    found = [Gaps(ids, ids, values, None) for values in studies]
    significant = np.mean([p <= 0.05 for p in p_values(found, n_resamples=4000)])
    outside = np.mean([not (i.low <= 0 <= i.high) for i in intervals(found, 2000)])  # type: ignore[operator]
    noise = 3 * np.sqrt(0.05 * 0.95 / n_studies)
    assert significant == pytest.approx(0.05, abs=noise)
    assert outside == pytest.approx(0.05, abs=noise + 0.015), "a bootstrap of 60 is a little too narrow"


def test_methods_that_do_nothing_share_the_first_rank() -> None:
    """Twelve methods that draw from one distribution: in at most one study of twenty is any surely better."""
    ids = [f"p{i}" for i in range(100)]
    found = []
    for study in range(40):
        draws = np.random.default_rng(study).normal(size=(12, 100))
        rows = {
            str(i): [replace(make(str(i)), examples=pd.DataFrame({"id": ids, "group": ids, "reward": row}))]
            for i, row in enumerate(draws)
        }
        found.append(set(ranks_of(over_first(rows)).values()) == {1})
    assert np.mean(found) >= 0.85


def test_another_sample_is_another_draw_and_the_same_one_again(llama: Any) -> None:
    prompts = [e.prompt for e in tiny.examples()[:4]]
    sampled = Decoding(max_new_tokens=8, temperature=1.0)
    first, again, other = (generate(llama, prompts, decoding=sampled, sample=k) for k in (0, 0, 1))
    assert first == again
    assert first != other
