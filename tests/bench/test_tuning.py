"""Tuning: what is tried, what is chosen, and what it costs."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from letter_method import LETTERS, Judge, Say, planned, saying

from steerbench import Decoding
from steerbench.bench import validation
from steerbench.bench.tuning import Tuned, tune
from steerbench.bench.units import plan
from steerbench.bench.validation import Validation
from steerbench.contract import tiny
from steerbench.engine import generate as generation
from steerbench.errors import SteerbenchError
from steerbench.learn import context as fit_context
from steerbench.learn.context import FitContext
from steerbench.models.encoder import SentenceEncoder
from steerbench.plugins import registry
from steerbench.steering.steering import Steering

BOTH = {"letter": ["x", "e", "o"], "weight": [1e4, 2e4]}
LIKED = {"x": 1.0, "e": 3.0, "o": 2.0}
VALIDATION = tiny.examples()[20:23]

say = pytest.fixture(saying)


@pytest.fixture
def context() -> FitContext:
    return FitContext(
        lm=tiny.language_model(),
        examples=tiny.examples()[:3],
        reward=Judge(LIKED),
        decoding=Decoding(max_new_tokens=3),
    )


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
    assert tuned.report == {
        "objective": "reward",
        "split": "validation",
        "n": 3,
        "chosen": {"letter": "e"},
        "searched": {"letter": ["x", "e", "o"]},
        "at_the_end": [],
    }
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
    assert tuned.report["trials"][1] == {"hyperparameters": {"letter": "!"}, "error": "cannot say it."}
    assert tuned.report["chosen"] == {"letter": "o"}


def test_a_strength_that_the_model_does_not_survive_is_told(
    context: FitContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.load("methods", "caa"), "search", {"strength": [3e38, 1.0]})
    sound, broken = tried("caa:layer=0", context, 3).report["trials"]
    assert "NaN" in broken["error"]
    assert "score" in sound


def test_a_method_of_which_every_candidate_fails_fails(say: Say, context: FitContext) -> None:
    say({"weight": [1.0, 2.0]})
    message = r"none of the 3 trials of say:letter=! could be measured; the first, weight=10000.0: cannot say it\."
    with pytest.raises(SteerbenchError, match=message):
        tried("say:letter=!", context, 3)


def test_a_bug_of_a_method_is_not_hidden(say: Say, context: FitContext) -> None:
    say({"letter": ["x", "?"]})
    with pytest.raises(ZeroDivisionError):
        tried("say", context, 2)


# What is tried


def test_the_method_as_it_is_is_tried_first(say: Say, context: FitContext) -> None:
    """Whether its values are among those searched or not, and even where they are the only trial."""
    say({"letter": ["o", "x", "e"]})
    inside = points(tried("say", context, 3))
    assert inside == [{"letter": letter} for letter in "xoe"]
    say({"letter": ["o", "e"]})
    outside = tried("say", replace(context, reward=Judge({"x": 9.0}), _shared={}), 3)
    assert points(outside) == [{"letter": letter} for letter in "xoe"]
    assert outside.method == planned("say")
    assert outside.report["chosen"] == {"letter": "x"}
    assert outside.report["at_the_end"] == []
    assert points(tried("say", context, 1)) == [{"letter": "x"}]


def test_a_large_space_is_climbed_from_the_method_as_it_is(say: Say, context: FitContext) -> None:
    say({"letter": list("uvwxyz"), "weight": [1e4 * k for k in range(1, 7)]})
    steep = replace(context, reward=Judge({"x": 9.0}), _shared={})
    first, *rest = points(tried("say", steep, 9))
    assert first == {"letter": "x", "weight": 1e4}
    climbed = rest[4:]
    assert all((p["letter"] == "x") or p["weight"] == 1e4 for p in climbed)


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


def test_the_second_half_of_the_budget_climbs_from_the_best(say: Say, context: FitContext) -> None:
    """Every trial of it is one step from a trial before it that led, or from an earlier one when those are used up."""
    letters = list("abcdefgh")
    say({"letter": letters, "weight": [1e4 * k for k in range(1, 7)]})
    fond = replace(context, reward=Judge({letter: float(i) for i, letter in enumerate(letters)}), _shared={})
    report = tried("say", fond, 10).report
    trials = report["trials"]
    assert len({json.dumps(t["hyperparameters"]) for t in trials}) == len(trials) == 10
    for i in range(6, 10):  # after the method as it is, and five of the spread
        leader = max(trials[:i], key=lambda t: t["score"])["hyperparameters"]
        here = trials[i]["hyperparameters"]
        changed = [name for name in here if here[name] != leader[name]]
        assert len(changed) == 1
        assert changed == ["letter"] or abs(here["weight"] - leader["weight"]) == 1e4
    assert report["searched"]["letter"] == letters


def test_a_choice_at_the_end_of_its_range_is_told(say: Say, context: FitContext) -> None:
    say({"weight": [1e4, 2e4, 3e4]})
    tuned = tried("say:letter=e", context, 3)
    assert tuned.report["chosen"] == {"weight": 1e4}, "all score the same, and the first wins"
    assert tuned.report["at_the_end"] == ["weight"]


def test_two_spellings_of_one_method_draw_the_same(say: Say, context: FitContext) -> None:
    say({"letter": list("abcdefghijklmnop")})
    one, other = (points(tried(f"say:weight={weight}", context, 3)) for weight in ("10000", "1e4"))
    assert one == other
    assert plan("say:weight=10000,say:weight=1e4", tuned=True)[1:] == [planned("say:weight=10000")]


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
    tuned = tried("say+static_prompt+shout", louder, 7)
    expected = [
        {"say.letter": quiet, "shout.letter": loud, "shout.weight": 3e4} for quiet in "xeo" for loud in ("u", "y")
    ]
    assert points(tuned) == [{"say.letter": "x", "shout.letter": "x", "shout.weight": 1e4}, *expected]
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
    assert plan("say")[1].steerers, "no matter without tuning"


# What it costs, and what it leaves


def test_what_is_cached_serves_all_trials(say: Say, context: FitContext, monkeypatch: pytest.MonkeyPatch) -> None:
    say(LETTERS)
    rolled = counted(fit_context, monkeypatch)
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
