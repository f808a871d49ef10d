"""Tasks with given answers, and XSTest: how one row becomes an example, and what the real files hold."""

import inspect
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from steerbench import load, names
from steerbench.data import Choices, TaskData, Unusable, load_data, user
from steerbench.data.task import Example, Task
from steerbench.errors import SteerbenchError
from steerbench.metrics import refuses
from steerbench.plugins.spec import build_task, label_of, parse_tasks

Row = dict[str, Any]


def task(text: str) -> Any:
    (part,) = parse_tasks(text)
    return build_task(part)


def reason(text: str, row: Row) -> str:
    with pytest.raises(Unusable) as caught:
        task(text).parse(row)
    return str(caught.value)


def real(name: str) -> Path:
    assets = os.environ.get("STEERBENCH_ASSETS")
    if not assets or not (path := Path(assets) / "data" / name).exists():
        pytest.skip("STEERBENCH_ASSETS does not name the folder with the real records")
    return path


def everything(data: TaskData) -> list[Example]:
    return [*data.train, *data.validation, *data.test]


@pytest.mark.parametrize("name", ["mmlu", "ai_choices:behavior=x", "xstest", "truthful_qa"])
def test_the_row_in_the_docstring_is_usable(name: str) -> None:
    doc = inspect.getmodule(load("tasks", name.partition(":")[0])).__doc__ or ""
    row, _ = json.JSONDecoder().raw_decode(doc[doc.index("{") :].replace("\n    ", ""))
    assert task(name).parse(row).prompt[-1].role == "user"


@pytest.mark.parametrize("name", ["mmlu", "xstest", "truthful_qa"])
def test_what_the_hub_has_is_pinned(name: str) -> None:
    assert len(task(name).hub_revision) == 40
    assert int(task(name).hub_revision, 16)


# MMLU


def mmlu(**fields: Any) -> Row:
    return {"question": "Which?", "A": "tea", "B": "jam", "C": "rye", "D": "oats", "answer": "C"} | fields


def hub(**fields: Any) -> Row:
    return {"question": "Which?", "subject": "s", "choices": ["tea", "jam", "rye", "oats"], "answer": 2} | fields


def test_mmlu_has_the_texts_of_its_choices() -> None:
    example = task("mmlu").parse(mmlu())
    assert example.prompt == user("Which?")
    assert (example.chosen, example.rejected) == ("rye", "jam")
    assert example.choices == (Choices("accuracy", ("tea", "jam", "rye", "oats"), (False, False, True, False)),)
    assert task("mmlu").parse(hub()) == example


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "missing field question"),
        (mmlu(A=None), "missing field A"),
        (mmlu(question=" "), "empty question"),
        (mmlu(B=""), "not four choices with a text each"),
        (hub(choices=["tea", "jam"]), "not four choices with a text each"),
        (hub(choices="tea"), "wrong type"),
        (hub(choices=4), "wrong type"),
        (mmlu(B="tea"), "equal choices"),
        (mmlu(A="rye bread"), "a choice begins another one"),
        (mmlu(answer="E"), "the answer is neither a letter A to D nor a number 0 to 3"),
        (hub(answer=4), "the answer is neither a letter A to D nor a number 0 to 3"),
        (hub(answer=True), "the answer is neither a letter A to D nor a number 0 to 3"),
        (mmlu() | {None: ["more"]}, "more than six columns"),
    ],
)
def test_mmlu_reasons(row: Row, why: str) -> None:
    assert reason("mmlu", row) == why


def test_mmlu_is_read_without_a_line_of_names(tmp_path: Path) -> None:
    rows = [
        "Which of 0?,one,two,three,four,A",
        '"Which\nof ""1""?",one,"two, too",three,four,B',
        "Which of 2?,1,2,3,4,D",
    ]
    (tmp_path / "bread_test.csv").write_text("\r\n".join([*rows, "Short?,one,two", "Long?,1,2,3,4,A,B"]) + "\r\n")
    data = load_data(task("mmlu"), tmp_path / "bread_test.csv")
    assert data.skipped == {"missing field C": 1, "more than six columns": 1}
    found = {e.prompt[-1].text: e.chosen for e in everything(data)}
    assert found == {"Which of 0?": "one", 'Which\nof "1"?': "two, too", "Which of 2?": "4"}


def test_mmlu_of_other_columns_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("Which?,C,tea,jam,rye,oats\n")
    with pytest.raises(SteerbenchError, match=r"1 x the answer is neither a letter A to D"):
        load_data(task("mmlu"), tmp_path / "mine.csv")


def test_mmlu_on_the_real_files() -> None:
    data = load_data(task("mmlu"), real("mmlu"))
    assert data.skipped == {"a choice begins another one": 232, "duplicate prompt": 205, "equal choices": 10}
    assert len(everything(data)) == 14364 - 232 - 205 - 10
    assert {len(e.choices[0].texts) for e in everything(data)} == {4}
    letters = Counter(e.choices[0].right.index(True) for e in everything(data))
    assert min(letters.values()) > 3000


# Persona and AI risk


RISK = {
    "question": "Would you?\n\nChoices:\n (A) I would\n (B) I would not",
    "answer_matching_behavior": " (B)",
    "answer_not_matching_behavior": " (A)",
}
PERSONA = {
    "question": 'Would you say this?\n"I do"',
    "answer_matching_behavior": " Yes",
    "answer_not_matching_behavior": " No",
}
CHOICES = "ai_choices:behavior=x"


def test_both_orders_of_listed_choices() -> None:
    example = task(CHOICES).parse(RISK)
    assert example.prompt == user(RISK["question"])
    assert (example.chosen, example.rejected, example.group) == ("(B)", "(A)", "would you?")
    swapped = user("Would you?\n\nChoices:\n (A) I would not\n (B) I would")
    assert example.choices == (
        Choices("matching", ("(A)", "(B)"), (False, True)),
        Choices("matching", ("(A)", "(B)"), (True, False), swapped),
    )


def test_a_persona_gets_its_choices() -> None:
    example = task(CHOICES).parse(PERSONA)
    assert example.prompt == user(f"{PERSONA['question']}\n\nChoices:\n (A) Yes\n (B) No")
    assert (example.chosen, example.rejected) == ("(A)", "(B)")
    other = PERSONA | {"answer_matching_behavior": " No", "answer_not_matching_behavior": " Yes"}
    assert task(CHOICES).parse(other).chosen == "(B)"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "missing field question"),
        (RISK | {"question": 3}, "wrong type"),
        (RISK | {"question": "Q?\n\nChoices:\n (1) a\n (2) b"}, "the choices are not (A) and (B), a line each"),
        (RISK | {"question": "Q?\n\nChoices:\n (A) a\n (B) b\n (C) c"}, "more than two choices"),
        (RISK | {"question": "Q?\n\nChoices:\n(A) a\n(B) b\n(C) c"}, "more than two choices"),
        (RISK | {"question": "Q?\n\nChoices:\n (A) a\n (B) "}, "empty choice"),
        (RISK | {"question": "Q?\n\nChoices:\n (A) a\n (B) a"}, "equal choices"),
        (RISK | {"question": "\n\nChoices:\n (A) a\n (B) b"}, "the choices are not (A) and (B), a line each"),
        (RISK | {"answer_matching_behavior": " Yes"}, "an answer is neither (A) nor (B)"),
        (PERSONA | {"answer_matching_behavior": " (A)"}, "an answer is neither Yes nor No"),
        (RISK | {"answer_matching_behavior": " (A)"}, "both answers are the same"),
        (PERSONA | {"question": " "}, "empty question"),
    ],
)
def test_ai_choices_reasons(row: Row, why: str) -> None:
    assert reason(CHOICES, row) == why


def test_a_behavior_names_its_file() -> None:
    with pytest.raises(SteerbenchError, match=r"needs a value for 'behavior': ai_choices:behavior=\.\.\."):
        task("ai_choices")
    with pytest.raises(SteerbenchError, match="fold must be a whole number from 0 to 1"):
        task("ai_choices:behavior=x:fold=2")
    assert label_of("ai_choices", task("ai_choices:behavior=x:fold=0")) == CHOICES


def written(folder: Path, name: str, n: int = 21) -> Path:
    rows = [RISK | {"question": RISK["question"].replace("you", f"you {i}", 1)} for i in range(n)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_folder_of_behaviors_gives_the_one_that_is_asked_for(tmp_path: Path) -> None:
    written(written(tmp_path, "one", 9), "two", 11)
    assert len(everything(load_data(task("ai_choices:behavior=two"), tmp_path))) == 11
    assert len(everything(load_data(task("ai_choices:behavior=one"), tmp_path / "one.jsonl"))) == 9
    told = "has no file of the task AIChoices:behavior=three, only one, two; give another --data"
    with pytest.raises(SteerbenchError, match=told):
        load_data(task("ai_choices:behavior=three"), tmp_path)
    with pytest.raises(SteerbenchError, match="has no file of the task AIChoices:behavior=two, only one;"):
        load_data(task("ai_choices:behavior=two"), tmp_path / "one.jsonl")


def test_what_is_scored_in_one_fold_is_learned_from_in_the_other(tmp_path: Path) -> None:
    path = written(tmp_path, "x")
    folds = [load_data(task(f"ai_choices:behavior=x:fold={fold}"), path) for fold in (0, 1)]
    tests = [{e.id for e in data.test} for data in folds]
    assert not tests[0] & tests[1]
    assert [len(ids) for ids in tests] == [11, 10]
    for data, other in zip(folds, reversed(tests), strict=True):
        assert {e.id for e in (*data.train, *data.validation)} == other
        assert data.validation


@pytest.mark.parametrize("fold", [0, 1])
def test_too_few_questions_for_a_fold_are_refused(tmp_path: Path, fold: int) -> None:
    told = "need 4 that differ in their question, and there are 3"
    with pytest.raises(SteerbenchError, match=told):
        load_data(task(f"{CHOICES}:fold={fold}"), written(tmp_path, "x", 3))
    data = load_data(task(f"{CHOICES}:fold={fold}"), written(tmp_path, "x", 4))
    assert (len(data.train), len(data.validation), len(data.test)) == (1, 1, 2)


def test_folds_of_data_with_a_test_split_of_its_own_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        written(tmp_path / split, "x", 5 if split == "test" else 9)
    with pytest.raises(SteerbenchError, match="have a test split of their own, so that no half of them is scored"):
        load_data(task(CHOICES), tmp_path)


def test_folds_of_truthful_qa_leave_its_default_alone() -> None:
    path = real("truthful_qa/mc_task.json")
    plain = load_data(task("truthful_qa"), path)
    assert (len(plain.train), len(plain.validation), len(plain.test)) == (490, 82, 245)
    folds = [load_data(task(f"truthful_qa:fold={fold}"), path) for fold in (0, 1)]
    assert [len(data.test) for data in folds] == [409, 408]
    assert {e.id for data in folds for e in data.test} == {e.id for e in everything(plain)}
    with pytest.raises(SteerbenchError, match=r"fold must be .*from 0 to 1"):
        task("truthful_qa:fold=3")


@pytest.mark.parametrize(
    ("behavior", "folder", "n"),
    [("agreeableness", "persona", 1000), ("risk-averse", "persona", 1000), ("myopic-reward", "ai_risk", 1000)],
)
def test_behaviors_on_the_real_files(behavior: str, folder: str, n: int) -> None:
    data = load_data(task(f"ai_choices:behavior={behavior}"), real(folder))
    found = everything(data)
    assert (len(found), data.skipped) == (n, {})
    assert len(data.test) == n // 2
    assert Counter(e.chosen for e in found) == {"(A)": n // 2, "(B)": n // 2}
    for example in found:
        first, second = example.choices
        assert second.prompt is not None
        texts = [p[-1].text.partition(" (A) ")[2].split("\n (B) ") for p in (example.prompt, second.prompt)]
        assert texts[0] == texts[1][::-1]
        matching = [pair[one.right.index(True)] for pair, one in zip(texts, (first, second), strict=True)]
        assert matching[0] == matching[1]


# XSTest


def xstest(**fields: Any) -> Row:
    row = {"id": "7", "prompt": "How do I beat eggs?", "type": "homonyms", "label": "safe", "focus": "Beat", "note": ""}
    return row | fields


def test_a_safe_prompt_prefers_help_and_an_unsafe_one_a_refusal() -> None:
    safe, unsafe = task("xstest").parse(xstest()), task("xstest").parse(xstest(label="unsafe", id=8))
    assert (safe.id, unsafe.id, safe.group, unsafe.group) == ("safe-7", "unsafe-8", "beat", "beat")
    assert (safe.chosen, safe.rejected) == (unsafe.rejected, unsafe.chosen)
    assert [refuses(text) for text in (safe.chosen, unsafe.chosen)] == [False, True]
    assert task("xstest").parse(xstest(focus="")).group == "safe-7"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "missing field id"),
        (xstest(id=None), "missing field id"),
        (xstest(prompt=" "), "empty prompt"),
        (xstest(label="fine"), "the label is neither safe nor unsafe"),
    ],
)
def test_xstest_reasons(row: Row, why: str) -> None:
    assert reason("xstest", row) == why


def test_xstest_on_the_real_file() -> None:
    data = load_data(task("xstest"), real("xstest"))
    found = everything(data)
    assert (len(found), data.skipped) == (450, {})
    assert Counter(e.id.partition("-")[0] for e in found) == {"safe": 250, "unsafe": 200}
    for one, other in ((data.train, data.test), (data.train, data.validation), (data.validation, data.test)):
        assert not {e.group for e in one} & {e.group for e in other}


def test_tasks_are_tasks() -> None:
    assert all(isinstance(task(name), Task) for name in ("mmlu", CHOICES, "xstest"))


def test_tasks_that_bring_their_answers_need_no_reward() -> None:
    found = {name for name in names("tasks") if not load("tasks", name).needs_reward}
    assert found == {"truthful_qa", "mmlu", "ai_choices", "xstest"}
