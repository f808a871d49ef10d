"""Tuning: what is tried, on which prompts, what is chosen, and what of it counts."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import Result

from steerbench import (
    Decoding,
    Options,
    Protocol,
    Reward,
    Store,
    generation,
    harness,
    registry,
    steerer,
    tiny,
    validation,
)
from steerbench.bench import Bench, load_bench
from steerbench.dialogue import Dialogue
from steerbench.encoder import SentenceEncoder
from steerbench.errors import SteerbenchError
from steerbench.latency import latency
from steerbench.method import Method
from steerbench.protocol import differences
from steerbench.steerer import FitContext
from steerbench.steering import Steering
from steerbench.tuning import Tuned, tune
from steerbench.validation import Validation

# A method whose hyperparameter is the letter that its responses repeat, so that a reward can rank the candidates.
PLUGIN = """
from dataclasses import dataclass
from transformers import LogitsProcessor
from steerbench import FitContext, LogitsPart, Steerer, SteerbenchError, Steering

class Add(LogitsProcessor):
    def __init__(self, token, weight):
        self.token, self.weight = token, weight
    def __call__(self, ids, scores):
        scores = scores.clone()
        scores[:, self.token] += self.weight
        return scores

class Letter(LogitsPart):
    def __init__(self, letter: str, weight: float) -> None:
        self.letter, self.weight = letter, weight
    def processor(self, lm, prompt_ids, mask):
        return Add(lm.tokenizer.encode(self.letter)[-1], self.weight)

@dataclass(frozen=True, kw_only=True)
class Say(Steerer):
    off = {{"weight": 0.0}}
    search = {search}

    letter: str = "a"
    weight: float = 1e4

    def fit(self, context: FitContext) -> Steering:
        context.report["letter"] = self.letter
        context.rollouts()
        if self.letter == "!":
            raise SteerbenchError("cannot say it.")
        if self.letter == "?":
            raise ZeroDivisionError
        return Steering(logits=(Letter(self.letter, self.weight),))
"""
LETTERS = {"letter": ["x", "e", "o"]}
BOTH = {"letter": ["x", "e", "o"], "weight": [1e4, 2e4]}
LIKED = {"x": 1.0, "e": 3.0, "o": 2.0}

Say = Callable[..., str]


class Judge(Reward):
    """Scores a response by its first letter, and remembers the dialogues it was asked about."""

    name, revision = "judge", "1"

    def __init__(self, liked: dict[str, float], elsewhere: dict[str, float] | None = None) -> None:
        self.liked, self.elsewhere = liked, liked if elsewhere is None else elsewhere
        self.home: set[Dialogue] = set()
        """Where `liked` holds, if there is an elsewhere."""
        self.seen: list[Dialogue] = []

    def score(self, dialogues: Sequence[Dialogue], responses: Sequence[str], progress: Any = None) -> torch.Tensor:
        self.seen += dialogues
        likings = [self.liked if d in self.home else self.elsewhere for d in dialogues]
        return torch.tensor([liking.get(r[:1], 0.0) for liking, r in zip(likings, responses, strict=True)])


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Return a function that registers a method with a search space."""
    monkeypatch.setattr(registry, "_files", dict(registry._files))

    def make(search: dict[str, list[Any]], name: str = "say") -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(PLUGIN.format(search=search))
        registry.add_plugin(path)
        return str(path)

    return make


@pytest.fixture
def context() -> FitContext:
    return FitContext(
        lm=tiny.language_model(),
        examples=tiny.examples()[:3],
        reward=Judge(LIKED),
        decoding=Decoding(max_new_tokens=3),
    )


VALIDATION = tiny.examples()[20:23]


def planned(text: str) -> Method:
    return harness.plan(text, tuned=True)[-1]


def tried(text: str, context: FitContext, budget: int) -> Tuned:
    return tune(planned(text), context, Validation(VALIDATION, SameSense()), budget)


class SameSense(SentenceEncoder):
    """Gives every text the same embedding."""

    def __init__(self) -> None: ...

    def encode(self, texts: Sequence[str], truncate: Any = "right", progress: Any = None) -> torch.Tensor:
        return torch.full((len(texts), 2), 0.5)


def points(tuned: Tuned) -> list[dict[str, Any]]:
    return [trial["hyperparameters"] for trial in tuned.report["trials"]]


# What is chosen


def test_the_candidate_with_the_highest_mean_reward_is_chosen(say: Say, context: FitContext) -> None:
    say(LETTERS)
    tuned = tried("say", context, 3)
    trials, unsteered = tuned.report.pop("trials"), tuned.report.pop("unsteered")
    assert tuned.report == {"objective": "reward", "split": "validation", "n": 3, "chosen": {"letter": "e"}}
    assert [trial["hyperparameters"] for trial in trials] == [{"letter": letter} for letter in "xeo"]
    assert [(trial["score"], trial["reward"]) for trial in trials] == [(LIKED[letter],) * 2 for letter in "xeo"]
    assert (unsteered["score"], unsteered["reward"]) == (0, 0)
    assert tuned.method == planned("say:letter=e")._replace(spec=planned("say").spec)


@pytest.mark.parametrize("lead", [0.0, 5e-5])
def test_the_first_wins_a_tie(say: Say, context: FitContext, lead: float) -> None:
    """Equal texts may score a little differently in another batch, and no batch size may change a choice."""
    say(LETTERS)
    tied = replace(context, reward=Judge({"x": 1.0, "e": 2.0, "o": 2.0 + lead}), _shared={})
    assert tried("say", tied, 3).report["chosen"] == {"letter": "e"}
    ahead = replace(context, reward=Judge({"x": 1.0, "e": 2.0, "o": 2.001}), _shared={})
    assert tried("say", ahead, 3).report["chosen"] == {"letter": "o"}


def test_a_candidate_that_fails_is_told_and_never_chosen(say: Say, context: FitContext) -> None:
    say({"letter": ["!", "x", "o"]})
    punishing = replace(context, reward=Judge({"x": -2.0, "o": -1.0}), _shared={})
    tuned = tried("say", punishing, 3)
    assert tuned.report["trials"][0] == {"hyperparameters": {"letter": "!"}, "error": "cannot say it."}
    assert tuned.report["chosen"] == {"letter": "o"}


def test_a_strength_that_the_model_does_not_survive_is_told(
    context: FitContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.load("methods", "caa"), "search", {"strength": [3e38, 1.0]})
    broken, sound = tried("caa:layer=0", context, 2).report["trials"]
    assert "NaN" in broken["error"]
    assert "score" in sound


def test_a_method_of_which_every_candidate_fails_fails(say: Say, context: FitContext) -> None:
    say({"letter": ["!"], "weight": [1.0, 2.0]})
    message = r"none of the 2 trials of say could be measured; the first, letter=!, weight=1.0: cannot say it\."
    with pytest.raises(SteerbenchError, match=message):
        tried("say", context, 2)


def test_a_bug_of_a_method_is_not_hidden(say: Say, context: FitContext) -> None:
    say({"letter": ["x", "?"]})
    with pytest.raises(ZeroDivisionError):
        tried("say", context, 2)


# What is tried


def test_a_small_grid_is_tried_whole_and_in_order(say: Say, context: FitContext) -> None:
    say(BOTH)
    grid = [{"letter": letter, "weight": weight} for letter in "xeo" for weight in (1e4, 2e4)]
    assert points(tried("say", context, 6)) == grid
    assert points(tried("say", context, 100)) == grid


def test_a_large_grid_is_drawn_from_by_the_seed(say: Say, context: FitContext) -> None:
    say(BOTH)
    by_seed = {seed: points(tried("say", replace(context, seed=seed), 4)) for seed in range(4)}
    for seed, drawn in by_seed.items():
        assert len({json.dumps(point) for point in drawn}) == 4, "without replacement"
        assert points(tried("say", replace(context, seed=seed), 4)) == drawn
    assert any(drawn != by_seed[0] for drawn in by_seed.values())


def test_two_spellings_of_one_method_draw_the_same(say: Say, context: FitContext) -> None:
    say({"letter": list("abcdefghijklmnop")})
    one, other = (points(tried(f"say:weight={weight}", context, 3)) for weight in ("10000", "1e4"))
    assert one == other
    assert harness.plan("say:weight=10000,say:weight=1e4", tuned=True)[1:] == [planned("say:weight=10000")]


def test_what_was_given_is_not_searched(say: Say, context: FitContext) -> None:
    say(BOTH)
    tuned = tried("say:weight=30000", context, 100)
    assert points(tuned) == [{"letter": letter} for letter in "xeo"]
    assert tuned.method.steerers == planned("say:weight=30000:letter=e").steerers


@pytest.mark.parametrize("text", ["unsteered", "static_prompt", "say:letter=x:weight=1", "static_prompt+unsteered"])
def test_what_leaves_nothing_to_search_is_taken_as_it_is(say: Say, context: FitContext, text: str) -> None:
    say(BOTH)
    assert tried(text, context, 9) == (planned(text), {})


def test_without_a_budget_nothing_is_tried(say: Say, context: FitContext) -> None:
    say(BOTH)
    assert tried("say", context, 0) == (planned("say"), {})


def test_the_parts_of_a_composed_method_are_searched_together(say: Say, context: FitContext) -> None:
    say(LETTERS)
    say({"letter": ["u", "y"], "weight": [3e4]}, "shout")
    louder = replace(context, reward=Judge({"u": 1.0, "y": 2.0}), _shared={})
    tuned = tried("say+static_prompt+shout", louder, 6)
    expected = [
        {"say.letter": quiet, "shout.letter": loud, "shout.weight": 3e4} for quiet in "xeo" for loud in ("u", "y")
    ]
    assert points(tuned) == expected
    assert tuned.report["chosen"] == {"say.letter": "x", "shout.letter": "y", "shout.weight": 3e4}
    assert [getattr(s, "letter", None) for s in tuned.method.steerers] == ["x", None, "y"]


def test_one_method_twice_is_told_apart(say: Say, context: FitContext) -> None:
    say(LETTERS)
    tuned = tried("say+say:weight=20000", context, 9)
    assert len(points(tuned)) == 9
    assert tuned.report["chosen"] == {"say[0].letter": "x", "say[1].letter": "e"}
    assert [(s.letter, s.weight) for s in tuned.method.steerers] == [("x", 1e4), ("e", 2e4)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("search", "fault"), [({"leter": ["x"]}, "is none of its hyperparameters"), ({"letter": []}, "has no values")]
)
def test_a_wrong_search_is_told_before_anything_is_loaded(say: Say, search: dict[str, list[str]], fault: str) -> None:
    say(search)
    with pytest.raises(SteerbenchError, match=f"search of method 'say': .* {fault}; correct it in Say"):
        planned("say")
    assert harness.plan("say")[1].steerers, "no matter without tuning"


# What it costs, and what it leaves


def test_what_is_cached_serves_all_trials(say: Say, context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    say(LETTERS)
    rolled = counted(steerer, monkeypatch)
    tuned = tried("say", context, 3)
    tuned.method.fit(context)
    assert len(rolled) == 1


def test_the_unsteered_model_is_measured_once(say: Say, context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    say(LETTERS)
    steerings = counted(validation, monkeypatch)
    for seed, text in enumerate(("say", "say:weight=20000", "say+static_prompt")):
        tried(text, replace(context, seed=seed), 3)
    assert steerings.count(Steering()) == 1
    sampled = replace(context, decoding=Decoding(max_new_tokens=3, temperature=1.0), _shared={})
    for seed in (0, 1, 1):
        tried("say", replace(sampled, seed=seed), 3)
    assert steerings.count(Steering()) == 3


def test_a_steering_is_scored_once_for_all_seeds(
    say: Say, context: FitContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy responses of one steering are the same for every seed, and many fits are, too."""
    say(LETTERS)
    steerings = counted(validation, monkeypatch)
    reports = [tried("say", replace(context, seed=seed), 3).report for seed in (0, 1, 1)]
    assert reports[0] == reports[1] == reports[2]
    assert len(steerings) == 4  # three trials and the unsteered model


def test_the_score_is_in_spreads_of_the_unsteered_rewards(say: Say, context: FitContext) -> None:
    say(LETTERS)
    prompts = [e.prompt for e in VALIDATION]
    mixed = Judge(LIKED, {letter: float(i) for i, letter in enumerate("xeo")})
    first = generation.generate(context.lm, prompts, decoding=context.decoding)[0].text[:1]
    mixed.home, mixed.liked = {prompts[0]}, {**LIKED, first: 6.0}  # so that the unsteered rewards are 6, 0, 0
    report = tried("say", replace(context, reward=mixed, _shared={}), 3).report
    spread = np.std([6.0, 0.0, 0.0])
    assert report["unsteered"]["reward"] == 2
    assert report["unsteered"]["score"] == pytest.approx(0)
    for trial in report["trials"]:
        assert trial["score"] == pytest.approx((trial["reward"] - 2) / spread)


def test_the_sum_adds_coherence_and_diversity(say: Say, context: FitContext) -> None:
    say(LETTERS)
    scored = Validation(VALIDATION, SameSense(), "sum")
    report = tune(planned("say"), context, scored, 3).report
    assert report["objective"] == "sum"
    for trial in report["trials"]:
        assert trial["coherence"] == pytest.approx(0.5)
        assert trial["score"] == pytest.approx(trial["reward"] + trial["coherence"] + trial["diversity"])


def test_the_unsteered_score_is_the_mean_on_validation(say: Say, context: FitContext) -> None:
    say(LETTERS)
    texts = [r.text for r in generation.generate(context.lm, [e.prompt for e in VALIDATION], decoding=context.decoding)]
    vowels = replace(context, reward=tiny.VowelReward())
    expected = tiny.VowelReward().score([], texts).mean().item()
    assert tried("say", vowels, 3).report["unsteered"]["reward"] == pytest.approx(expected)


def test_the_report_of_a_fit_is_that_of_no_trial(say: Say, context: FitContext) -> None:
    say(LETTERS)
    tuned = tried("say", context, 3)
    assert context.report == {}
    tuned.method.fit(context)
    assert context.report == {"say": {"letter": "e"}}


def test_a_bar_shows_the_trials(say: Say, context: FitContext) -> None:
    say(LETTERS)
    shown: dict[str, list[int]] = {}

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
        shown[label] = [total]
        yield shown[label].append

    tried("say", replace(context, progress=progress), 2)
    assert shown["tune say"] == [2, 1, 1]


def counted(module: Any, monkeypatch: pytest.MonkeyPatch) -> list[Steering]:
    """Return a list that grows by the steering of every generation that a module asks for."""
    steerings: list[Steering] = []

    def count(lm: Any, dialogues: Any, steering: Steering = Steering(), *args: Any, **kwargs: Any) -> Any:
        steerings.append(steering)
        return generation.generate(lm, dialogues, steering, *args, **kwargs)

    monkeypatch.setattr(module, "generate", count)
    return steerings


# In a run


@pytest.fixture
def protocol(protocol: Protocol) -> Protocol:
    short = Decoding(max_new_tokens=3)
    return replace(protocol, n_train=3, tuning_budget=3, n_validation=2, decoding=short)


@pytest.fixture
def bench(protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The tiny world, where `e` is best on validation and `x` everywhere else."""
    monkeypatch.setattr(harness, "latency", partial(latency, new_tokens=2, rounds=1))
    judge = Judge({"x": 1.0, "e": 3.0}, elsewhere={"x": 3.0, "e": 1.0})
    loaded = replace(load_bench(protocol, Options()), reward=judge)
    judge.home = {e.prompt for e in loaded.validation}
    return loaded


def test_the_best_on_validation_is_measured_and_not_the_best_on_test(say: Say, bench: Bench) -> None:
    say(LETTERS)
    method = planned("say")
    record = harness.measure(bench, method, 0, None)
    assert [trial["score"] for trial in record.tuning["trials"]] == [1.0, 3.0, 0.0]
    assert record.tuning["chosen"] == {"letter": "e"}
    assert list(record.examples["response"]) == ["eee"] * 4
    assert record.metrics["reward"] == 1.0
    assert record.seconds["tune"] > 0


def test_a_record_is_that_of_the_method_as_given(say: Say, bench: Bench) -> None:
    say(LETTERS)
    record = harness.measure(bench, planned("say"), 0, None)
    assert record.method == "say"
    (part,) = record.parts
    assert part["hyperparameters"] == {"letter": "a", "weight": 1e4}
    assert part["searched"] == ["letter"]


def test_tuning_sees_the_validation_prompts_and_no_test_prompt(
    say: Say, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(LETTERS)
    validation, test = ({e.prompt for e in split} for split in (bench.validation, bench.test))
    train = {e.prompt for e in bench.train}
    assert isinstance(bench.reward, Judge)
    generated: list[Dialogue] = []
    draw = generation._draw

    def spy(lm: Any, dialogues: Sequence[Dialogue], *rest: Any) -> Any:
        generated.extend(dialogues)
        return draw(lm, dialogues, *rest)

    def tuned(*args: Any) -> Tuned:
        found = tune(*args)
        phases.append((set(bench.reward.seen), set(generated)))  # type: ignore[attr-defined]
        return found

    phases: list[tuple[set[Dialogue], set[Dialogue]]] = []
    monkeypatch.setattr(generation, "_draw", spy)
    monkeypatch.setattr(harness, "tune", tuned)
    harness.measure(bench, planned("say"), 0, None)
    assert phases == [(validation | train, validation | train)]
    assert not (validation | train) & test
    assert test <= set(bench.reward.seen)
    assert test <= set(generated), "the spies would have seen them"


def test_every_seed_is_tuned_by_itself(say: Say, bench: Bench) -> None:
    say({"letter": list("abcdefghijklmnop")})
    drawn = [
        [trial["hyperparameters"] for trial in harness.measure(bench, planned("say"), seed, None).tuning["trials"]]
        for seed in (0, 1)
    ]
    assert drawn[0] != drawn[1]


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
    untuned = run_cli(*plugin, "--methods", "say,say:letter=a")
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
