"""`steerbench judge`: what is kept and not asked twice, cost, leave, outages, what is printed and written."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_judge import (
    KEY,
    Answer,
    FakeJudge,
    judged,
    longer,
    moody,
    noted_pauses,
    only,
    questions,
    record,
    serving,
    texts,
    two,
)
from typer.testing import Result

from steerbench import SteerbenchError, Store
from steerbench.cli import judge_command as judging
from steerbench.judge import ASKED, TEMPLATE_HASH, Question, Replies, ask
from steerbench.judge.client import connect
from steerbench.judge.judgements import COLUMNS, pairs, win_rates

Cli = Callable[..., Result]
server = pytest.fixture(serving)
pauses = pytest.fixture(autouse=True)(noted_pauses)


# What is kept


def test_the_same_again_makes_no_call(server: FakeJudge, tmp_path: Path) -> None:
    first = judged(server, tmp_path, two())
    assert len(server.calls) == 12
    server.judge = lambda *_: (500, {}, "")
    pd.testing.assert_frame_equal(judged(server, tmp_path, two()), first)
    assert len(server.calls) == 12


def test_another_judge_or_template_is_another_judgement(monkeypatch: pytest.MonkeyPatch) -> None:
    question = Question("p", "a", "b")
    keys = {
        question.key("one"),
        question.key("two"),
        Question("p", "b", "a").key("one"),
        Question("p", "ab", "").key("one"),
    }
    monkeypatch.setattr("steerbench.judge.TEMPLATE_HASH", "other")
    assert len({*keys, question.key("one")}) == 5


def test_signs_of_the_template_in_a_response_change_nothing() -> None:
    question = Question("{a} {prompt}", "{b} 100 %s {0} {{", "}\n")
    assert "<conversation>\n{a} {prompt}\n</conversation>" in question.text
    assert "<response_a>\n{b} 100 %s {0} {{\n</response_a>" in question.text


@pytest.mark.parametrize("workers", [1, 3])
def test_an_outage_in_the_middle_keeps_what_was_judged(server: FakeJudge, tmp_path: Path, workers: int) -> None:
    answered: list[Any] = []
    alive = [7]

    def judge(*question: str) -> Answer:
        if len(answered) >= alive[0]:
            return None
        answered.append(question)
        return moody(*question)

    server.judge = judge
    with pytest.raises(SteerbenchError, match=r"does not answer.*are kept; the same command goes on"):
        judged(server, tmp_path, two(), workers=workers)
    assert len((tmp_path / "replies.jsonl").read_text().splitlines()) == len(answered)
    alive[0] = 1000
    row = only(judged(server, tmp_path, two(), workers=workers))
    assert len(answered) == len(set(answered)) == 12
    server.judge = moody
    assert row.to_dict() == only(judged(server, tmp_path / "whole", two())).to_dict()


def test_an_interruption_keeps_what_was_judged(server: FakeJudge, tmp_path: Path) -> None:
    done = [0]

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(n: int) -> None:
            done[0] += n
            if done[0] == 3:
                raise KeyboardInterrupt

        assert total == 100
        yield advance

    found, replies = pairs(two(50)), Replies(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        ask(questions(found), connect(server.url, "judge"), replies, workers=1, progress=progress)
    assert 3 <= len(server.calls) < 100
    judged(server, tmp_path, two(50))
    assert len(server.calls) == 100


def test_a_line_torn_anywhere_is_asked_for_again(server: FakeJudge, tmp_path: Path) -> None:
    first = judged(server, tmp_path, two(2), workers=1)
    whole = (tmp_path / "replies.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (1, 2, 20, len(lines[-1]) // 2, len(lines[-1]) - 1):
        (tmp_path / "replies.jsonl").write_bytes(whole[:-cut])
        n_calls = len(server.calls)
        pd.testing.assert_frame_equal(judged(server, tmp_path, two(2)), first)
        assert len(server.calls) - n_calls == (0 if cut == 1 else 1)  # without the line's end alone it is whole
        n_calls = len(server.calls)
        judged(server, tmp_path, two(2))
        assert len(server.calls) == n_calls


def test_lines_that_are_none_are_passed_over(server: FakeJudge, tmp_path: Path) -> None:
    first = judged(server, tmp_path, two(2))
    with (tmp_path / "replies.jsonl").open("ab") as file:
        file.write(b'\n\xff\xfe\n[]\n3\n{"key": 1, "reply": "[[A]]"}\n{"key": "k"}\nnull\n')
    pd.testing.assert_frame_equal(judged(server, tmp_path, two(2)), first)
    assert len(server.calls) == 4


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SteerbenchError, match="--out"):
        Replies(tmp_path / "file")


@pytest.mark.parametrize("workers", [1, 16])
def test_the_number_of_workers_changes_no_result(server: FakeJudge, tmp_path: Path, workers: int) -> None:
    server.judge = lambda prompt, a, b: "?" if prompt == "Q p003?" else moody(prompt, a, b)
    reference = judged(server, tmp_path / "other", two(20), workers=4)
    pd.testing.assert_frame_equal(judged(server, tmp_path, two(20), workers=workers), reference)


def test_every_reply_is_there_to_read(server: FakeJudge, tmp_path: Path) -> None:
    judged(server, tmp_path, two(1))
    lines = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert {line["verdict"] for line in lines} == {"A", "B"}
    wanted = {"judge_model": "judge", "served": "judge-2026-01-01", "template": TEMPLATE_HASH}
    assert all(wanted.items() <= line.items() and line["reply"].startswith("Because") for line in lines)


# The command


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with records of the unsteered model and two methods."""
    for each in [*two(8), record("iti:layer=[3]", texts("i", 8))]:
        Store(tmp_path / "runs").write(each)
    return tmp_path / "runs"


def command(server: FakeJudge, runs: Path) -> tuple[Any, ...]:
    return "judge", runs, "--endpoint", server.url, "--judge-model", "judge"


def written(runs: Path) -> pd.DataFrame:
    return pd.read_csv(runs / "judgements" / "win_rates.csv", dtype={"protocol": str, "template": str})


def test_the_command_judges_prints_and_writes(server: FakeJudge, runs: Path, cli: Cli) -> None:
    server.judge = moody
    done = cli(*command(server, runs), "--yes", "--n", 6)
    assert done.exit_code == 0, done.stderr
    assert len(server.calls) == 2 * 6 * 2
    table = written(runs)
    assert list(table.columns) == list(COLUMNS)
    assert list(table.columns[:8]) == ["method", "task", "win_rate", "low", "high", "n", "consistency", "failed"]
    replies = Replies(runs / "judgements")
    wanted = win_rates(pairs(Store(runs).records(), n=6), "judge", replies)
    pd.testing.assert_frame_equal(table, wanted, check_dtype=False)
    assert "shp: win rate over unsteered, by judge" in done.stdout
    for _, row in table.iterrows():
        line = next(line for line in done.stdout.splitlines() if line.startswith(row.method))
        assert f"{row.win_rate:.3f}  {row.low:.3f} to {row.high:.3f}  {row.n} " in re.sub(r" {2,}", "  ", line) + " "
    assert str(runs / "judgements" / "win_rates.csv") in done.stdout


def test_the_command_again_needs_no_leave_and_writes_the_same(server: FakeJudge, runs: Path, cli: Cli) -> None:
    first = cli(*command(server, runs), "--yes")
    csv = (runs / "judgements" / "win_rates.csv").read_bytes()
    again = cli(*command(server, runs))
    assert again.exit_code == 0, again.stderr
    assert again.stdout == first.stdout
    assert "no call to make: 0 pairs are equal, 16 were asked about before." in again.stderr
    assert (runs / "judgements" / "win_rates.csv").read_bytes() == csv
    assert len(server.calls) == 32


def test_without_a_terminal_nothing_is_asked_without_leave(server: FakeJudge, runs: Path, cli: Cli) -> None:
    done = cli(*command(server, runs), "--price-in", "2.5", "--price-out", "10")
    assert done.exit_code == 2
    assert "--yes" in done.stderr
    characters = [len(q.text) for q in questions(pairs(Store(runs).records()))]
    prompts = sum(-(-n // 4) for n in characters)
    assert f"32 calls to make, about {prompts} prompt tokens (characters / 4)" in done.stderr
    assert f"at most {32 * 1024} reply tokens" in done.stderr
    assert f"asked for again: up to {ASKED} times all this" in done.stderr
    assert f"USD {prompts * 2.5 / 1e6:.2f} for prompts; at most USD 0.33 for replies" in done.stderr
    assert server.calls == []
    assert not (runs / "judgements").exists()


@pytest.mark.parametrize(("leave", "calls"), [("y\n", 32), ("n\n", 0)])
def test_on_a_terminal_leave_is_asked_for(
    server: FakeJudge, runs: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, leave: str, calls: int
) -> None:
    monkeypatch.setattr(judging, "_on_terminal", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: leave == "y\n")
    done = cli(*command(server, runs))
    assert done.exit_code == (0 if calls else 1)
    assert len(server.calls) == calls
    for name in ("replies.jsonl", "win_rates.csv"):
        assert (runs / "judgements" / name).exists() == bool(calls)


def test_no_more_is_asked_than_was_told(server: FakeJudge, runs: Path, cli: Cli) -> None:
    """Were it told without the times that a question is asked again, a price would not be the most."""
    server.judge = lambda *_: "I am a teapot."
    failed = cli(*command(server, runs), "--yes", "--n", 1)
    assert "4 calls to make" in failed.stderr
    assert f"up to {ASKED} times all this" in failed.stderr
    assert len(server.calls) == 4 * ASKED


def test_equal_responses_alone_leave_no_file_of_replies(server: FakeJudge, tmp_path: Path, cli: Cli) -> None:
    for name in ("unsteered", "caa"):
        Store(tmp_path).write(record(name, ["a", "b", "c"]))
    done = cli(*command(server, tmp_path))
    assert done.exit_code == 0, done.stderr
    assert "no call to make: 3 pairs are equal, 0 were asked about before." in done.stderr
    assert {path.name for path in (tmp_path / "judgements").iterdir()} == {"win_rates.csv"}
    assert "replies.jsonl" not in done.stdout


def test_a_folder_that_cannot_keep_replies_is_told_before_any_call(server: FakeJudge, runs: Path, cli: Cli) -> None:
    (runs / "taken" / "replies.jsonl").mkdir(parents=True)
    (runs / "file").write_text("")
    (runs / "link").symlink_to(runs / "nowhere")
    for out in ("taken", "file", "link"):
        done = cli(*command(server, runs), "--yes", "--out", runs / out)
        assert done.exit_code == 2
        assert "choose another --out" in done.stderr
    assert server.calls == []


@pytest.mark.parametrize(("n", "told"), [(9, True), (8, False), (7, False)])
def test_more_prompts_than_there_are_is_told(server: FakeJudge, runs: Path, cli: Cli, n: int, told: bool) -> None:
    done = cli(*command(server, runs), "--yes", "--n", n)
    assert done.exit_code == 0, done.stderr
    assert set(written(runs)["n"]) == {min(n, 8)}
    said = f"shp: --n is {n}, and there are 8 test prompts; all of them are taken.\n"
    assert done.stderr.count("test prompts") == told
    assert (said in done.stderr) == told


def test_a_judge_without_a_name_is_refused(server: FakeJudge, runs: Path, cli: Cli) -> None:
    for name in ("", " "):
        done = cli("judge", runs, "--endpoint", server.url, "--judge-model", name, "--yes")
        assert done.exit_code == 2
        assert "--judge-model is empty" in done.stderr
    assert server.calls == []


def test_an_outage_ends_the_command_with_one_sentence(server: FakeJudge, runs: Path, cli: Cli) -> None:
    left = [9]

    def judge(*question: str) -> Answer:
        left[0] -= 1
        return longer(*question) if left[0] >= 0 else (500, {}, "")

    server.judge = judge
    failed = cli(*command(server, runs), "--yes", "--workers", 1, "--n", 8)
    assert failed.exit_code == 2
    assert failed.stderr.count("\n") == 2
    assert "HTTP 500" in failed.stderr
    assert not (runs / "judgements" / "win_rates.csv").exists()
    server.judge = longer
    done = cli(*command(server, runs), "--yes")
    assert "23 calls to make" in done.stderr
    assert done.exit_code == 0


def test_failures_are_told_with_their_reason(server: FakeJudge, runs: Path, cli: Cli) -> None:
    server.judge = lambda prompt, a, b: (400, {}, "too long") if prompt == "Q p001?" else longer(prompt, a, b)
    done = cli(*command(server, runs), "--yes")
    assert "no verdict on 4 questions: HTTP 400: too long" in done.stderr
    assert list(written(runs)["failed"]) == [1, 1]


def test_the_command_takes_methods_as_the_leaderboard_names_them(server: FakeJudge, runs: Path, cli: Cli) -> None:
    done = cli(*command(server, runs), "--yes", "--methods", "iti:layer=[3]", "--against", "caa")
    assert done.exit_code == 0, done.stderr
    row = only(written(runs))
    assert (row.method, row.against) == ("iti:layer=[3]", "caa")
    assert "iti:layer=[3]" in done.stdout


def test_the_key_is_sent_and_found_nowhere_else(
    server: FakeJudge, runs: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    args = (*command(server, runs), "--api-key-env", "MY_KEY", "--yes")
    done = cli(*args)
    assert done.exit_code == 0, done.stderr
    assert {*server.keys} == {f"Bearer {KEY}"}
    server.judge = lambda *_: (401, {}, json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}))
    failed = cli(*args, "--out", runs / "other")
    assert failed.exit_code == 2
    assert "Incorrect API key provided: ***" in failed.stderr
    server.judge = lambda *_: (200, {}, f"<p>{KEY}</p>")
    cli(*args, "--out", runs / "third")
    shown = done.output + failed.output + repr(connect(server.url, "judge", "MY_KEY"))
    assert KEY not in shown
    assert all(KEY.encode() not in path.read_bytes() for path in runs.rglob("*") if path.is_file())
