"""Tuning in a run: which prompts it sees, what of it counts, and what the record says."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from letter_method import LETTERS, Judge, Say, planned, saying
from typer.testing import Result

from steerbench import Decoding, Options, Protocol, Store
from steerbench.bench import run as harness
from steerbench.bench.setup import Bench, load_bench
from steerbench.bench.tuning import Tuned, tune
from steerbench.data.dialogue import Dialogue
from steerbench.engine import generate as generation
from steerbench.errors import SteerbenchError
from steerbench.learn.context import FitContext
from steerbench.learn.rollout import Rollout
from steerbench.records.identity import differences

say = pytest.fixture(saying)


# In a run


@pytest.fixture
def protocol(protocol: Protocol) -> Protocol:
    short = Decoding(max_new_tokens=3)
    return replace(protocol, n_train=3, tuning_budget=3, n_validation=2, decoding=short)


@pytest.fixture
def bench(protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The tiny world, where `e` is best on validation and `x` everywhere else."""
    judge = Judge({"x": 1.0, "e": 3.0}, elsewhere={"x": 3.0, "e": 1.0})
    loaded = load_bench(protocol, Options())
    loaded.reward = judge
    judge.home = {e.prompt for e in loaded.validation}
    return loaded


def test_the_best_on_validation_is_measured_and_not_the_best_on_test(say: Say, bench: Bench) -> None:
    say(LETTERS)
    method = planned("say")
    record = harness.measure(bench, method, 0)
    assert [trial["score"] for trial in record.tuning["trials"]] == [1.0, 3.0, 0.0]
    assert record.tuning["chosen"] == {"letter": "e"}
    assert list(record.examples["response"]) == ["eee"] * 4
    assert record.metrics["reward"] == 1.0
    assert record.seconds["tune"] > 0


def test_a_record_is_that_of_the_method_as_given(say: Say, bench: Bench) -> None:
    say(LETTERS)
    record = harness.measure(bench, planned("say"), 0)
    assert record.method == "say"
    (part,) = record.parts
    assert part["hyperparameters"] == {"letter": "x", "weight": 1e4}
    assert part["searched"] == ["letter"]


def test_tuning_sees_the_validation_prompts_and_no_test_prompt(
    say: Say, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(LETTERS)
    validation, test = ({e.prompt for e in split} for split in (bench.validation, bench.test))
    train = {e.prompt for e in bench.train}
    assert isinstance(bench.reward, Judge)
    generated: list[Dialogue] = []
    run = generation.Draws.run

    def spy(draws: Any, dialogues: Sequence[Dialogue], *rest: Any) -> Any:
        generated.extend(dialogues)
        return run(draws, dialogues, *rest)

    def tuned(*args: Any) -> Tuned:
        found = tune(*args)
        phases.append((set(bench.reward.seen), set(generated)))  # type: ignore[attr-defined]
        return found

    phases: list[tuple[set[Dialogue], set[Dialogue]]] = []
    monkeypatch.setattr(generation.Draws, "run", spy)
    monkeypatch.setattr(harness, "tune", tuned)
    harness.measure(bench, planned("say"), 0)
    assert phases == [(validation | train, validation | train)]
    assert not (validation | train) & test
    assert test <= set(bench.reward.seen)
    assert test <= set(generated), "the spies would have seen them"


def test_every_seed_is_tuned_by_itself(say: Say, bench: Bench) -> None:
    say({"letter": list("abcdefghijklmnop")})
    drawn = [
        [trial["hyperparameters"] for trial in harness.measure(bench, planned("say"), seed).tuning["trials"]]
        for seed in (0, 1)
    ]
    assert drawn[0] != drawn[1]


def test_what_a_trial_learned_counts_as_the_fit(say: Say, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit of the candidate chosen finds the rollouts that the first trial has drawn, and would seem to be free."""
    say(LETTERS)
    rolled_out = FitContext._roll_out

    def slowly(context: FitContext) -> list[Rollout]:
        time.sleep(0.3)
        return rolled_out(context)

    monkeypatch.setattr(FitContext, "_roll_out", slowly)
    assert harness.measure(bench, planned("say"), 0).seconds["fit"] >= 0.3
    assert harness.measure(bench, planned("say"), 0).seconds["fit"] < 0.3  # which methods share, as tables say


def test_the_key_tells_how_it_was_tuned(protocol: Protocol) -> None:
    base = load_bench(protocol, Options())
    assert len(base.validation) == 2
    assert not {e.group for e in base.validation} & {e.group for e in [*base.train, *base.test]}
    changed = {"tuning_budget": {"tuning_budget"}, "n_validation": {"n_validation", "validation_examples"}}
    for field, fields in changed.items():
        other = load_bench(replace(protocol, **{field: 4}), Options())  # type: ignore[arg-type]
        assert {d.field for d in differences(base.key, other.key)} == fields


def test_without_tuning_no_validation_prompt_is_looked_at(protocol: Protocol) -> None:
    wide = load_bench(replace(protocol, n_validation=9), Options())
    longest = max(len(wide.lm.tokens(e.prompt).prompt) for e in wide.validation)
    untuned = replace(protocol, tuning_budget=0, max_prompt_tokens=longest - 1)
    bench = load_bench(untuned, Options())
    assert bench.validation == []
    assert (bench.key["tuning_budget"], bench.key["n_validation"], bench.key["validation_examples"]) == (0, 0, None)
    assert load_bench(replace(untuned, n_validation=9), Options()).key == bench.key
    tuned = load_bench(replace(untuned, tuning_budget=1, n_validation=9), Options())
    assert bench.counts == {}
    assert tuned.counts[f"prompt longer than {longest - 1} tokens"] > 0


def test_a_split_without_a_usable_validation_prompt_is_told(protocol: Protocol, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        words = "why " * (15 if split == "validation" else 1)
        replies = {key: f"\n\nHuman: {words}{split}?\n\nAssistant: {key}." for key in ("chosen", "rejected")}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(replies) + "\n")
    narrow = replace(protocol, data=tmp_path, max_prompt_tokens=50)
    with pytest.raises(SteerbenchError, match="no validation prompt of hh_rlhf has at most 50 tokens"):
        load_bench(narrow, Options())
    assert load_bench(replace(narrow, tuning_budget=0), Options()).train


@pytest.mark.parametrize("wrong", [{"tuning_budget": -1}, {"n_validation": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SteerbenchError, match="tuning_budget must be 0 or more, and n_validation at least 1"):
        Protocol(**wrong)


# From the command line


def test_a_tuned_run_is_found_again_and_ranked_apart(
    run_cli: Callable[..., Result], cli: Callable[..., Result], say: Say, tmp_path: Path
) -> None:
    plugin = ["--plugin", say(LETTERS)]
    tuned = ["--methods", "say,say:letter=a,static_prompt", "--tune", "2", "--n-validation", "3"]
    first = run_cli(*plugin, *tuned)
    assert first.exit_code == 0, first.stderr
    records = {record.method: record for record in Store(tmp_path / "runs").records()}
    assert {name: len(r.tuning.get("trials", [])) for name, r in records.items()} == {
        "unsteered": 0,
        "say": 2,
        "say:letter=a": 0,
        "static_prompt": 0,
    }
    assert records["say"].tuning["n"] == 3
    chosen = records["say"].tuning["chosen"]["letter"]
    assert all(response.startswith(chosen) for response in records["say"].examples["response"])
    assert all(response.startswith("a") for response in records["say:letter=a"].examples["response"])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*")}
    assert run_cli(*plugin, *tuned).stdout == first.stdout.replace("0 of them from before", "4 of them from before")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*")} == before
    untuned = run_cli(*plugin, "--methods", "say,say:letter=x")
    assert "2 records in" in untuned.stdout
    assert ", 0 of them from before" in untuned.stdout
    refused = cli("leaderboard", tmp_path / "runs")
    assert refused.exit_code == 2
    assert "tuning_budget: " in refused.stderr


@pytest.mark.parametrize("option", ["--tune=-1", "--n-validation=0"])
def test_options_out_of_range_are_refused(run_cli: Callable[..., Result], option: str) -> None:
    done = run_cli("--methods", "unsteered", option)
    assert done.exit_code == 2
    assert option.partition("=")[0] in done.stderr


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"objective": "rewards", "tuning_budget": 2}, "objective 'rewards'.*reward"),
        ({"objective": "sum"}, "objective 'sum' is for tuning; add --tune 8, and drop --match-kl"),
        ({"objective": "sum", "tuning_budget": 2, "match_kl": 0.1}, "is for tuning; add --tune 8, and drop --match-kl"),
        ({"n_samples": 2}, "more than 1 needs a temperature above 0: greedy responses are all alike"),
        ({"n_samples": 0}, "n_samples is 0; it must be 1 or more"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(SteerbenchError, match=message):
        Protocol(**choices)
