"""Likelihoods of choices: against one plain pass for each answer, exact numbers, and the records of a run."""

import json
from collections.abc import Callable
from math import log
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import Result

from steerbench.bench.choices import choice_log_likelihoods, choice_scores
from steerbench.data.dialogue import user
from steerbench.data.splits import load_data
from steerbench.data.task import Choices, Example
from steerbench.metrics.choice_likelihood import likeliest_is_right, share_of_right
from steerbench.models.language_model import LanguageModel
from steerbench.plugins.spec import build_task, parse_tasks

QUESTION = Example(
    "1", "1", user("Does rye bread cure a cold?"), "No.", "Yes, overnight.",
    (
        Choices("mc1", ("No.", "Yes, overnight.", "Yes."), (True, False, False)),
        Choices("mc2", ("No.", "Nothing does.", "Yes, overnight."), (True, True, False)),
    ),
)  # fmt: skip


def naive(lm: LanguageModel, example: Example, text: str) -> float:
    """The sum over the reply's tokens of log p, from one pass over one row without a cache."""
    prompt, reply = lm.tokens(example.prompt, text)
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


def test_likelihoods_equal_single_plain_passes(llama: LanguageModel) -> None:
    found = choice_log_likelihoods(llama, [QUESTION], batch_size=4)
    expected = [[naive(llama, QUESTION, text) for text in c.texts] for c in QUESTION.choices]
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(expected), atol=1e-3, rtol=1e-5)
    scores = choice_scores([QUESTION], found)
    assert scores["mc1"] == [float(expected[0][0] == max(expected[0]))]
    weights = torch.tensor(expected[1], dtype=torch.float64).softmax(0)
    assert scores["mc2"][0] == pytest.approx(float(weights[:2].sum()), abs=1e-4)


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


@pytest.mark.slow
def test_mc1_and_mc2_of_real_questions_equal_single_passes(assets: Path) -> None:
    """40 questions in float32: 1e-4."""
    data = load_data(build_task(parse_tasks("truthful_qa")[0]), assets / "data" / "truthful_qa" / "mc_task.json")
    assert len(data.train) + len(data.validation) + len(data.test) == 817
    lm = LanguageModel.load(str(assets / "models" / "tinytalk-3m-chat"))
    examples = [e for e in data.test if len(lm.tokens(e.prompt).prompt) < 64][:40]
    found = choice_scores(examples, choice_log_likelihoods(lm, examples, batch_size=16))
    for i, example in enumerate(examples):
        mc1, mc2 = ({t: naive(lm, example, t) for t in c.texts} for c in example.choices)
        assert found["mc1"][i] == float(max(mc1, key=mc1.__getitem__) == example.chosen)
        weights = torch.tensor(list(mc2.values()), dtype=torch.float64).softmax(0)
        assert abs(found["mc2"][i] - float(weights[torch.tensor(example.choices[1].right)].sum())) < 1e-4
