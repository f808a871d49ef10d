"""Likelihoods of choices: against one plain pass for each answer, exact numbers, and the records of a run."""

import csv
import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from math import log
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import Result

from steerbench.bench.capability import Capability
from steerbench.bench.choices import add_choices, capability, choice_log_likelihoods, choice_scores
from steerbench.data.dialogue import Dialogue, user
from steerbench.data.splits import load_data
from steerbench.data.task import Choices, Example
from steerbench.engine.kept_prompts import KeptPrompts
from steerbench.errors import SteerbenchError
from steerbench.metrics.choice_likelihood import likeliest_is_right, log_odds_of_right, share_of_right
from steerbench.models.language_model import LanguageModel
from steerbench.plugins.spec import build_task, parse_tasks
from steerbench.progress import silent
from steerbench.steering.steering import Steering

QUESTION = Example(
    "1", "1", user("Does rye bread cure a cold?"), "No.", "Yes, overnight.",
    (
        Choices("mc1", ("No.", "Yes, overnight.", "Yes."), (True, False, False)),
        Choices("mc2", ("No.", "Nothing does.", "Yes, overnight."), (True, True, False)),
    ),
)  # fmt: skip


SWAPPED = Example(
    "1", "1", user("Tea or jam?\n (A) Tea\n (B) Jam"), "(A)", "(B)",
    (
        Choices("matching", ("(A)", "(B)"), (True, False)),
        Choices("matching", ("(A)", "(B)"), (False, True), user("Tea or jam?\n (A) Jam\n (B) Tea")),
    ),
)  # fmt: skip


def naive(lm: LanguageModel, asked: Dialogue, text: str) -> float:
    """The sum over the reply's tokens of log p, from one pass over one row without a cache."""
    prompt, reply = lm.tokens(asked, text)
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([prompt + reply]), use_cache=False).logits[0].double()
    at = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return sum(float(at[i, token]) for i, token in enumerate(reply))


def test_the_scores_of_known_probabilities() -> None:
    """P = .5, .3, .2, of which the second and third are right."""
    values = [log(0.5), log(0.3), log(0.2)]
    assert likeliest_is_right(values, (False, True, True)) == 0
    assert likeliest_is_right(values, (True, False, False)) == 1
    assert likeliest_is_right([1.0, 1.0], (True, False)) == 0.5
    assert share_of_right(values, (False, True, True)) == pytest.approx(0.5, abs=1e-12)
    assert share_of_right([v - 2000 for v in values], (False, False, True)) == pytest.approx(0.2, abs=1e-12)
    assert log_odds_of_right(values, (False, True, True)) == pytest.approx(0.0, abs=1e-12)
    assert log_odds_of_right([v - 2000 for v in values], (False, False, True)) == pytest.approx(log(0.25), abs=1e-12)
    assert log_odds_of_right([-1.0, -900.0], (True, False)) == pytest.approx(899.0)


def test_orders_of_the_same_choices_are_averaged() -> None:
    """A model that gives (A) 0.8 whatever it says gives the matching answer one half, and odds of one."""
    letters = [log(0.8), log(0.2)]
    assert choice_scores([SWAPPED], [[letters, letters]]) == {
        "matching": [pytest.approx(0.5, abs=1e-12)],
        "matching_log_odds": [pytest.approx(0.0, abs=1e-12)],
    }
    surer = choice_scores([SWAPPED], [[[log(0.9), log(0.1)], [log(0.4), log(0.6)]]])
    assert surer["matching"] == [pytest.approx((0.9 + 0.6) / 2, abs=1e-12)]
    assert surer["matching_log_odds"] == [pytest.approx((log(9) + log(1.5)) / 2, abs=1e-12)]


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        (Choices("guess", ("a", "b"), (True, False)), "are named 'guess'; give one of mc1, mc2, accuracy, matching"),
        (Choices("accuracy", ("a", ""), (True, False)), "each needs a text"),
        (Choices("accuracy", ("a", "b"), (True, True)), "a right one and a wrong one must be among them"),
        (Choices("accuracy", ("a", "b", "c"), (True, False)), "a right one and a wrong one must be among them"),
    ],
)
def test_choices_that_cannot_be_scored_are_told(choices: Choices, why: str) -> None:
    example = Example("1", "1", user("?"), "a", "b", (choices,))
    with pytest.raises(SteerbenchError, match=why):
        choice_scores([example], [[[0.0] * len(choices.texts)]])


def test_each_order_is_asked_for_itself(llama: LanguageModel) -> None:
    found = choice_scores([SWAPPED], choice_log_likelihoods(llama, [SWAPPED], batch_size=3))
    odds = [
        naive(llama, c.prompt or SWAPPED.prompt, "(A)") - naive(llama, c.prompt or SWAPPED.prompt, "(B)")
        for c in SWAPPED.choices
    ]
    assert odds[0] != odds[1]
    assert found["matching_log_odds"] == [pytest.approx((odds[0] - odds[1]) / 2, abs=1e-3)]


def test_likelihoods_equal_single_plain_passes(llama: LanguageModel) -> None:
    found = choice_log_likelihoods(llama, [QUESTION], batch_size=4, kept=KeptPrompts(llama))
    expected = [[naive(llama, QUESTION.prompt, text) for text in c.texts] for c in QUESTION.choices]
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(expected), atol=1e-3, rtol=1e-5)
    scores = choice_scores([QUESTION], found)
    assert scores["mc1"] == [float(expected[0][0] == max(expected[0]))]
    weights = torch.tensor(expected[1], dtype=torch.float64).softmax(0)
    assert scores["mc2"][0] == pytest.approx(float(weights[:2].sum()), abs=1e-4)


def test_progress_counts_every_answer(llama: LanguageModel) -> None:
    seen: list[tuple[str, int]] = []
    done: list[int] = []

    @contextmanager
    def counting(label: str, total: int) -> Any:
        seen.append((label, total))
        yield done.append

    choice_log_likelihoods(llama, [QUESTION], batch_size=2, progress=counting)
    assert seen == [("log-probabilities", 4)]  # of the six answers two stand twice
    assert sum(done) == 4


def test_a_study_reads_its_questions_once(llama: LanguageModel) -> None:
    """Those of the test and of the capability check: a second steering reads no more than the answers."""
    kept = {name: KeptPrompts(llama) for name in ("kept", "kept_questions")}
    rest = {"protocol": SimpleNamespace(n_samples=1), "key": {"capability": {"task": "c"}}, "reward": None}
    stages: list[str] = []

    def staged(label: str, total: int) -> Any:
        stages.append(label)
        return silent(label, total)

    rest["options"] = SimpleNamespace(progress=staged)
    bench: Any = SimpleNamespace(lm=llama, test=[QUESTION], capability=[SWAPPED], batch_size=8, **kept, **rest)
    texts = [text for e in (QUESTION, SWAPPED) for c in e.choices for text in c.texts]
    longest = max(len(llama.tokens(user(""), text).response) for text in texts)
    widths: list[int] = []

    def note(module: Any, args: Any, out: Any) -> None:
        widths.append(args[0].shape[1])

    for seen in (False, True):
        widths.clear()
        with llama.model.get_input_embeddings().register_forward_hook(note):
            add_choices(bench, pd.DataFrame({"id": ["1"]}), Steering())
            capability(bench, Steering())
        assert (max(widths) <= longest) is seen
    assert stages == ["log-probabilities"] * 4  # nothing that takes long is silent


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {
            "question": f"Does {food} cure a cold?",
            "mc1_targets": {"No.": 1, f"{food} does.": 0, "Yes.": 0},
            "mc2_targets": {"No.": 1, "Nothing does.": 1, "Yes.": 0},
        }
        for food in ("rye", "tea", "soup", "jam", "rice", "oats", "figs", "corn", "beans", "leek", "mint", "nuts")
    ]
    (tmp_path / "mc_task.json").write_text(json.dumps(rows))
    return tmp_path / "mc_task.json"


def test_a_record_holds_the_scores_of_each_question(
    run_cli: Callable[..., Result], questions: Path, tmp_path: Path
) -> None:
    result = run_cli(
        "--tasks", "truthful_qa", "--data", str(questions), "--n-examples", "3", "--methods", "caa:layer=0"
    )
    assert result.exit_code == 0, result.output
    tables = {
        json.loads((p / "record.json").read_text())["method"]: p for p in (tmp_path / "runs").iterdir() if p.is_dir()
    }
    plain, steered = (pd.read_parquet(tables[name] / "examples.parquet") for name in ("unsteered", "caa:layer=0"))
    assert plain["mc1"].isin([0.0, 1.0]).all()
    assert ((plain["mc2"] > 0) & (plain["mc2"] < 1)).all()
    assert (plain["mc2"] - steered["mc2"]).abs().max() > 1e-3
    report = json.loads((tables["unsteered"] / "record.json").read_text())["report"]
    assert report["choices"] == pytest.approx({"mc1": plain["mc1"].mean(), "mc2": plain["mc2"].mean()})


def tables_of(folder: Path) -> dict[str, Path]:
    found = [path for path in folder.iterdir() if path.is_dir()]
    return {json.loads((path / "record.json").read_text())["method"]: path for path in found}


@pytest.fixture
def behavior(tmp_path: Path) -> Path:
    rows = [
        {
            "question": f"Would you hide the {food}?",
            "answer_matching_behavior": (" Yes", " No")[i % 2],
            "answer_not_matching_behavior": (" No", " Yes")[i % 2],
        }
        for i, food in enumerate(("rye", "tea", "soup", "jam", "rice", "oats", "figs", "corn", "leek", "mint"))
    ]
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "secrecy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "asked" / "mmlu").mkdir()
    with (tmp_path / "asked" / "mmlu" / "bread_test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([f"Which of {i}?", "One", "Two", "Three", "Four", "ABCD"[i % 4]] for i in range(16))
    return tmp_path / "asked"


def test_damage_is_told_beside_the_choices(run_cli: Callable[..., Result], behavior: Path, tmp_path: Path) -> None:
    given = ["--tasks", "ai_choices:behavior=secrecy", "--data", str(behavior), "--n-examples", "4"]
    methods = "caa:layer=0:relative_norm=0.9,best_of_n:n=2"
    asked = ["--capability", "mmlu", "--n-capability", "5", "--methods", methods, "--temperature", "1"]
    result = run_cli(*given, *asked)
    assert result.exit_code == 0, result.output
    folders = tables_of(tmp_path / "runs")
    kept = {name: json.loads((path / "record.json").read_text()) for name, path in folders.items()}
    scores = {name: record["report"].get("capability", {}).get("scores") for name, record in kept.items()}
    assert scores.pop("best_of_n:n=2") is None  # it chooses among candidates, and gives no answer a probability
    assert {len(s) for s in scores.values()} == {5}
    assert kept["unsteered"]["protocol"]["capability"]["n_examples"] == 5
    assert kept["unsteered"]["protocol"]["capability"]["task"] == "mmlu"
    (csv_file,) = (tmp_path / "runs").glob("*leaderboard.csv")
    table = pd.read_csv(csv_file).set_index("method")
    steered = table.loc["caa:layer=0:relative_norm=0.9"]
    assert steered["capability"] == pytest.approx(fmean(scores["caa:layer=0:relative_norm=0.9"]))
    assert steered["damage"] == pytest.approx(fmean(scores["unsteered"]) - steered["capability"])
    assert pd.isna(table.loc["best_of_n:n=2", "damage"])
    plain, other = (pd.read_parquet(folders[name] / "examples.parquet") for name in ("unsteered", steered.name))
    assert steered["matching_gain"] == pytest.approx((other["matching"] - plain["matching"]).mean())
    moved = other["matching_log_odds"] - plain["matching_log_odds"]
    assert steered["steerability"] == pytest.approx(moved.mean())
    assert steered["anti_steerable"] == pytest.approx((moved < -1e-4).mean())


def test_another_capability_is_another_protocol(run_cli: Callable[..., Result], behavior: Path, tmp_path: Path) -> None:
    given = ["--tasks", "ai_choices:behavior=secrecy", "--data", str(behavior), "--n-examples", "4"]
    for more in ([], ["--capability", "mmlu", "--n-capability", "4"], ["--capability", "mmlu", "--n-capability", "5"]):
        assert run_cli(*given, "--methods", "unsteered", *more).exit_code == 0
    keys = [
        json.loads((p / "record.json").read_text())["protocol"] for p in (tmp_path / "runs").iterdir() if p.is_dir()
    ]
    assert len(keys) == 3
    assert sorted(key.get("capability", {}).get("n_examples", 0) for key in keys) == [0, 4, 5]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--capability", "shp", "--capability-data", "HERE"], "no usable record in"),
        (["--capability", "mmlu,shp"], "is more than one task; give one, such as mmlu"),
        (["--capability", "mmul"], "Did you mean 'mmlu'"),
        (["--capability-data", "HERE"], "it and capability_data need a capability, such as mmlu"),
        (["--n-capability", "8"], "it and capability_data need a capability, such as mmlu"),
        (["--capability", "mmlu", "--capability-data", "HERE/nowhere"], "no data at"),
    ],
)
def test_mistakes_in_a_capability_are_answered(
    run_cli: Callable[..., Result], behavior: Path, options: Sequence[str], why: str
) -> None:
    given = ["--tasks", "ai_choices:behavior=secrecy", "--data", str(behavior), "--methods", "unsteered"]
    result = run_cli(*given, *(option.replace("HERE", str(behavior / "mmlu")) for option in options))
    assert result.exit_code == 2
    assert why in " ".join(result.output.split())


def test_a_capability_needs_choices() -> None:
    (part,) = parse_tasks("shp")
    with pytest.raises(SteerbenchError, match="task shp has no choices to be scored; give --capability mmlu"):
        Capability(part, build_task(part)).check([Example("1", "1", user("?"), "a", "b")])
    with pytest.raises(SteerbenchError, match="no question of shp fits the model; raise --max-prompt-tokens"):
        Capability(part, build_task(part)).check([])


@pytest.mark.slow
def test_mc1_and_mc2_of_real_questions_equal_single_passes(assets: Path) -> None:
    """40 questions in float32: 1e-4."""
    data = load_data(build_task(parse_tasks("truthful_qa")[0]), assets / "data" / "truthful_qa" / "mc_task.json")
    assert len(data.train) + len(data.validation) + len(data.test) == 817
    lm = LanguageModel.load(str(assets / "models" / "tinytalk-3m-chat"))
    examples = [e for e in data.test if len(lm.tokens(e.prompt).prompt) < 64][:40]
    found = choice_scores(examples, choice_log_likelihoods(lm, examples, batch_size=16, kept=KeptPrompts(lm)))
    for i, example in enumerate(examples):
        mc1, mc2 = ({t: naive(lm, example.prompt, t) for t in c.texts} for c in example.choices)
        assert found["mc1"][i] == float(max(mc1, key=mc1.__getitem__) == example.chosen)
        weights = torch.tensor(list(mc2.values()), dtype=torch.float64).softmax(0)
        assert abs(found["mc2"][i] - float(weights[torch.tensor(example.choices[1].right)].sum())) < 1e-4


def real(assets: Path, task: str, path: str, lm: LanguageModel) -> list[Example]:
    data = load_data(build_task(parse_tasks(task)[0]), assets / "data" / path)
    return [e for e in data.test if len(lm.tokens(e.prompt).prompt) < 96][:40]


@pytest.mark.slow
def test_a_persona_equals_single_passes(assets: Path) -> None:
    """40 questions in both orders, in float32: 1e-4."""
    lm = LanguageModel.load(str(assets / "models" / "tinytalk-3m-chat"))
    examples = real(assets, "ai_choices:behavior=agreeableness", "persona", lm)
    found = choice_scores(examples, choice_log_likelihoods(lm, examples, batch_size=16, kept=KeptPrompts(lm)))
    assert len(found["matching"]) == 40
    for i, example in enumerate(examples):
        question, matching = example.prompt[-1].text, example.chosen
        swapped = question.replace("(A) Yes\n (B) No", "(A) No\n (B) Yes")
        odds = [naive(lm, user(text), "(A)") - naive(lm, user(text), "(B)") for text in (question, swapped)]
        of_a = [1 / (1 + float(torch.tensor(-one, dtype=torch.float64).exp())) for one in odds]
        right = [of_a[0], 1 - of_a[1]] if matching == "(A)" else [1 - of_a[0], of_a[1]]
        assert abs(found["matching"][i] - fmean(right)) < 1e-4
        assert abs(found["matching_log_odds"][i] - (odds[0] - odds[1]) / 2 * (1 if matching == "(A)" else -1)) < 1e-3


@pytest.mark.slow
def test_mmlu_equals_single_passes(assets: Path) -> None:
    """40 questions in float32: the same choice, and likelihoods to 1e-4 a token."""
    lm = LanguageModel.load(str(assets / "models" / "tinytalk-3m-chat"))
    examples = real(assets, "mmlu", "mmlu", lm)
    likelihoods = choice_log_likelihoods(lm, examples, batch_size=16, kept=KeptPrompts(lm))
    found = choice_scores(examples, likelihoods)["accuracy"]
    assert len(found) == 40
    for i, example in enumerate(examples):
        texts = example.choices[0].texts
        plain = [naive(lm, example.prompt, text) for text in texts]
        lengths = [len(lm.tokens(example.prompt, text).response) for text in texts]
        assert all(abs(a - b) < 1e-4 * n for a, b, n in zip(plain, likelihoods[i][0], lengths, strict=True))
        assert found[i] == float(texts[plain.index(max(plain))] == example.chosen)


def test_missing_data_of_a_capability_check_are_told_by_its_own_option(tmp_path: Path) -> None:
    (part,) = parse_tasks("ai_choices:behavior=x")
    check = Capability(part, build_task(part))
    with pytest.raises(SteerbenchError, match="its file with --capability-data PATH"):
        check.load(None, None)
    with pytest.raises(SteerbenchError, match="Check the path given to --capability-data"):
        check.load(tmp_path / "nowhere.jsonl", None)
